"""Prepared data made by hand, in the form of `prepare_data`, from texts of any kind."""

import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np

from gemma_ft.families import END_OF_TURN, START_OF_TURN

CONTRACT = {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "start_of_turn_id": 106,
    "end_of_turn_id": 107,
    "departure": None,
    "template_sha256": "c" * 64,
    "sample_sha256": "d" * 64,
    "rows_compared": 2,
    "rows_sha256": "e" * 64,
}


def encode_turns(tokenizer, turns, max_length):
    """Lay out turns of user and model; the model's words and ends are learned."""

    def words(text):
        return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    bos, start, end = tokenizer.convert_tokens_to_ids(["<bos>", START_OF_TURN, END_OF_TURN])
    ids, labels = [bos], [-100]
    for number, text in enumerate(turns):
        answer = number % 2 == 1
        header, body = words("model\n" if answer else "user\n"), [*words(text), end, *words("\n")]
        ids += [start, *header, *body]
        labels += [-100] * (1 + len(header)) + (body if answer else [-100] * len(body))
    return ids[:max_length], labels[:max_length], len(ids)


def build_rows(tokenizer, talks, max_length=10_000):
    """Make the training rows."""
    columns = {
        name: []
        for name in ("input_ids", "labels", "where", "length", "full_length", "trained", "turns", "turns_cut")
    }
    for number, turns in enumerate(talks, start=1):
        ids, labels, full = encode_turns(tokenizer, turns, max_length)
        answers = len(turns) // 2
        kept = sum(label == tokenizer.convert_tokens_to_ids(END_OF_TURN) for label in labels)
        values = (ids, labels, f"chats.jsonl:{number}", len(ids), full, sum(i >= 0 for i in labels))
        for name, value in zip(columns, (*values, kept, answers - kept), strict=True):
            columns[name].append(value)
    ids = datasets.Sequence(datasets.Value("int32"))
    features = {name: datasets.Value("int32") for name in columns}
    features |= {"input_ids": ids, "labels": ids, "where": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def build_part(rows, dropped=None, held_out=None, left_out=None):
    """Make a source of rows that are all used."""
    train = SimpleNamespace(rows=rows, dropped=dropped or Path(os.devnull), report={"dropped": {}})
    held_out = held_out and SimpleNamespace(dropped=held_out)
    used = np.ones(len(rows), bool)
    return SimpleNamespace(train=train, held_out=held_out, left_out=left_out or {}, used=used)


def build_data(tokenizer, talks, max_length=10_000, *, part=None, **facts):
    """Make prepared data with the facts that are counted from its rows, and others."""
    rows = build_rows(tokenizer, talks, max_length)
    tokens, trained = sum(rows["length"]), sum(rows["trained"])
    counted = {
        "source": "local",
        "path": "chats.jsonl",
        "config": None,
        "revision": None,
        "split": "train",
        "eval_split": None,
        "data_sha256": "a" * 64,
        "plain_text": False,
        "rows_read": len(rows),
        "rows_train": len(rows),
        "rows_held_out": 0,
        "rows_evaluated": 0,
        "rows_cut": sum(full > max_length for full in rows["full_length"]),
        "rows_dropped": {},
        "held_out_dropped": {},
        "duplicates": 0,
        "overlap": 0,
        "near_duplicates": None,
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": trained / tokens,
        "turns_learned": sum(rows["turns"]),
        "turns_cut": sum(rows["turns_cut"]),
        "system_messages": 0,
        "unused_columns": [],
        "packing": None,
        "mixture": None,
        "contract": CONTRACT,
    }
    parts = (build_part(rows, **(part or {})),)
    return SimpleNamespace(rows=rows, train=rows, held_out=None, facts=counted | facts, parts=parts)
