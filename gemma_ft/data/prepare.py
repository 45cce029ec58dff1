"""From the configured rows to the token tables that training and evaluation read."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from gemma_ft import families
from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.data.conversations import Example, Text, build_example
from gemma_ft.data.holdout import content_digest, hold_out, pick
from gemma_ft.data.sources import load_split, open_source
from gemma_ft.data.tokens import NOT_LEARNED, Encoded, encode_batch
from gemma_ft.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow
    from transformers import PreTrainedTokenizerFast

_BATCH_ROWS = 256
_UNLEARNED = "no learned token within trainer.max_length"
_IN_EVAL_SPLIT = "in dataset.eval_split as well"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """What training reads."""

    train: "datasets.Dataset"
    """Columns input_ids and labels."""
    held_out: "datasets.Dataset | None"
    """The same columns; never trained on."""
    facts: dict[str, Any]
    """Where the rows came from, how many there are and what they hash to; for data.json."""


@dataclass(slots=True)
class _Tokenised:
    """Tokenised rows, in Arrow batches so that no Python list of their ids stays."""

    batches: list["pyarrow.RecordBatch"] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """Content of each row kept."""
    cut: list[bool] = field(default_factory=list)
    """Whether a row kept was longer than max_length."""
    unlearned: int = 0
    """Rows left out because nothing in them is learned."""

    def take(self, wanted: Sequence[bool], *, release: bool = False) -> "pyarrow.Table":
        """Copy the wanted rows; release gives up each batch as it is copied."""
        import pyarrow

        empty = _batch([])
        taken, start = [], 0
        for place, batch in enumerate(self.batches):
            mask = wanted[start : start + batch.num_rows]
            start += batch.num_rows
            taken.append(batch if all(mask) else batch.filter(pyarrow.array(mask, type=pyarrow.bool_())))
            if release:
                self.batches[place] = empty
        return pyarrow.Table.from_batches([batch for batch in taken if batch.num_rows] or [empty])


class _Reader:
    """Reads splits as examples, counting and hashing all that passes."""

    def __init__(self, dataset: DatasetConfig) -> None:
        self.source = open_source(dataset)
        self.rows = 0
        self.plain_text = 0
        self._name = dataset.path
        self._hash = hashlib.sha256()

    def read(self, split: str, key: str, limit: int | None) -> Iterator[tuple[Example, bytes]]:
        """Yield each example with the digest of its content."""
        for row in islice(load_split(self.source, split, name=self._name, key=key), limit):
            example = build_example(row)
            digest = content_digest(example)
            self._hash.update(digest)
            self.rows += 1
            self.plain_text += isinstance(example, Text)
            yield example, digest

    def sha256(self) -> str:
        """Return the hash over the content of all rows that were read, in order."""
        return self._hash.hexdigest()


def prepare_data(
    dataset: DatasetConfig, *, tokenizer: "PreTrainedTokenizerFast", max_length: int, seed: int
) -> PreparedData:
    """Read, normalise, tokenise and split the rows of a run.

    Held out are the rows of `dataset.eval_split`, or else a share of the distinct rows that content and seed
    choose. A row whose content is held out is never trained on, wherever it stands.

    Args:
        dataset: Which rows, and what is learned from them.
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        max_length: Longest row in tokens.
        seed: Chooses the rows that are held out.

    Raises:
        DataError: A row cannot be used, or nothing is left to learn.
        HubError: The hub is needed and does not give the data set.
    """
    reader = _Reader(dataset)

    def tokenise(examples: Iterable[tuple[Example, bytes]]) -> _Tokenised:
        return _tokenise(examples, tokenizer, dataset, max_length)

    rows = tokenise(reader.read(dataset.split, "dataset.split", dataset.max_rows))
    training_rows = reader.rows
    if dataset.eval_split is None:
        held = hold_out(rows.digests, dataset.eval_fraction, seed)
        candidates = ((place, digest) for place, digest in enumerate(rows.digests) if digest in held)
        evaluated = {place for place, _ in pick(candidates, dataset.max_eval_rows, seed)}
        held_out = rows.take([place in evaluated for place in range(len(rows.digests))])
    else:
        held = set()
        examples = _noting(reader.read(dataset.eval_split, "dataset.eval_split", None), held)
        picked = tokenise(pick(examples, dataset.max_eval_rows, seed))
        held_out = picked.take([True] * len(picked.digests))
    trained_on = [digest not in held for digest in rows.digests]
    _check_left(dataset, rows, trained_on, max_length)
    train = rows.take(trained_on, release=True)
    facts = _source_facts(dataset, reader, tokenizer) | {"max_length": max_length, "seed": seed}
    facts |= _row_counts(rows, trained_on, held_out, eval_split_rows=reader.rows - training_rows)
    facts |= _token_counts(train)
    return PreparedData(
        train=_dataset(train, "train", facts),
        held_out=_dataset(held_out, "held_out", facts) if held_out.num_rows else None,
        facts=facts,
    )


def _noting(examples: Iterable[tuple[Example, bytes]], seen: set[bytes]) -> Iterator[tuple[Example, bytes]]:
    for example, digest in examples:
        seen.add(digest)
        yield example, digest


def _tokenise(
    examples: Iterable[tuple[Example, bytes]],
    tokenizer: "PreTrainedTokenizerFast",
    dataset: DatasetConfig,
    max_length: int,
) -> _Tokenised:
    result = _Tokenised()
    stream = iter(examples)
    while chunk := list(islice(stream, _BATCH_ROWS)):
        encoded = encode_batch([example for example, _ in chunk], tokenizer, dataset.loss_on, max_length)
        kept = [(row, digest) for row, (_, digest) in zip(encoded, chunk, strict=True) if row.trained]
        result.unlearned += len(chunk) - len(kept)
        result.digests += [digest for _, digest in kept]
        result.cut += [row.cut for row, _ in kept]
        result.batches.append(_batch([row for row, _ in kept]))
    return result


def _batch(rows: Sequence[Encoded]) -> "pyarrow.RecordBatch":
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    return pyarrow.record_batch({name: pyarrow.array(lists, type=ids) for name, lists in columns.items()})


def _check_left(
    dataset: DatasetConfig, rows: _Tokenised, trained_on: Sequence[bool], max_length: int
) -> None:
    if any(trained_on):
        return
    start = f"dataset.path={dataset.path} leaves no row to train on:"
    if not trained_on:
        raise DataError(
            f"{start} no answer of {rows.unlearned} begins within trainer.max_length={max_length}. Raise it."
        )
    if dataset.eval_split is not None:
        raise DataError(
            f"{start} all are in dataset.eval_split={dataset.eval_split} as well. Choose another eval_split."
        )
    distinct = len(set(rows.digests))
    raise DataError(
        f"{start} dataset.eval_fraction={dataset.eval_fraction:g} holds out all {distinct} distinct rows. "
        "Add rows, or set dataset.eval_fraction=0."
    )


def _source_facts(
    dataset: DatasetConfig, reader: _Reader, tokenizer: "PreTrainedTokenizerFast"
) -> dict[str, Any]:
    return {
        "source": dataset.source.value,
        "path": dataset.path,
        "config": dataset.config,
        "revision": reader.source.revision,
        "split": dataset.split,
        "eval_split": dataset.eval_split,
        "loss_on": dataset.loss_on.value,
        "plain_text": reader.plain_text == reader.rows,
        "data_sha256": reader.sha256(),
        "tokenizer_sha256": _sha256(tokenizer.backend_tokenizer.to_str()),
        "template_sha256": _sha256(families.load_chat_template()),
    }


def _row_counts(
    rows: _Tokenised, trained_on: Sequence[bool], evaluated: "pyarrow.Table", *, eval_split_rows: int
) -> dict[str, Any]:
    train = sum(trained_on)
    aside = len(trained_on) - train
    dropped = {_UNLEARNED: rows.unlearned, _IN_EVAL_SPLIT: aside if eval_split_rows else 0}
    return {
        "rows_read": len(trained_on) + rows.unlearned,
        "rows_train": train,
        "rows_held_out": eval_split_rows or aside,
        "rows_evaluated": evaluated.num_rows,
        "rows_cut": sum(cut and learned for cut, learned in zip(rows.cut, trained_on, strict=True)),
        "rows_dropped": {cause: number for cause, number in dropped.items() if number},
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _token_counts(train: "pyarrow.Table") -> dict[str, Any]:
    import pyarrow.compute

    tokens = trained = 0
    for chunk in train["labels"].chunks:
        labels = chunk.flatten()
        tokens += len(labels)
        trained += pyarrow.compute.sum(pyarrow.compute.not_equal(labels, NOT_LEARNED)).as_py()
    return {"tokens": tokens, "trained_tokens": trained, "trained_share": trained / tokens}


def _dataset(table: "pyarrow.Table", name: str, facts: dict[str, Any]) -> "datasets.Dataset":
    import datasets

    # Its own fingerprint would be made by hashing every token again.
    return datasets.Dataset(table, fingerprint=_sha256(f"{name} {sorted(facts.items())}")[:16])
