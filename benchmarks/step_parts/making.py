"""The models and rows of the cases, made on this machine from a seed."""

import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from step_parts.cases import SEED, SHAPES, Rows

_WORDS = (
    "the",
    "of",
    "to",
    "and",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<start_of_turn>model\n' }}{% generation %}{{ message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endgeneration %}{% else %}"
    "{{ '<start_of_turn>user\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma's turns, with the marks that TRL makes its loss mask from."""
TINY_ROWS = Rows(words=(3, 3), count=8)
"""Of the runs that tell what a loaded model takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where models and rows stand, and what runs write."""

    folder: Path

    def model(self, shape: str) -> Path:
        """Return the folder of a model, making it on first use."""
        return _once(self.folder / "models" / _slug(shape), lambda target: write_model(target, SHAPES[shape]))

    def rows(self, rows: Rows) -> Path:
        """Return a folder that holds the rows as train.jsonl, making it on first use."""
        low, high = rows.words
        target = self.folder / "rows" / f"{low}-{high}-{rows.count}"
        return _once(target, lambda beside: write_chats(beside / "train.jsonl", rows))

    def run(self, *names: str) -> Path:
        """Return an empty folder for a run."""
        target = self.folder / "runs" / "-".join(map(_slug, names))
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        return target


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _once(target: Path, write: Any) -> Path:
    if not target.exists():
        beside = target.with_name(f".{target.name}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        beside.rename(target)
    return target


def write_model(folder: Path, sizes: dict[str, Any]) -> None:
    """Write a Gemma with random weights in bf16, and the bundled model's tokenizer.

    Its 2,048 words are the first of the model's; no row has one of the others, which the loss scores all
    the same.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from gemma_ft.modeling.tiny import load_tiny

    tokenizer = AutoTokenizer.from_pretrained(load_tiny())
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    if sizes["model_type"] == "gemma3_text":
        _move_turns(folder / "tokenizer.json")
    config = AutoConfig.for_model(
        **sizes,
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _move_turns(file: Path) -> None:
    """Give the turn tokens the ids that they have in Gemma 3: one less, and 107 is unused."""
    moved = {"<start_of_turn>": 105, "<end_of_turn>": 106, "<unused100>": 107}
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"] |= moved
    for token in content["added_tokens"]:
        token["id"] = moved.get(token["content"], token["id"])
    file.write_text(json.dumps(content), encoding="utf-8")


def write_chats(file: Path, rows: Rows) -> None:
    """Write chats as `messages`, the same ones every time."""
    rng = random.Random(SEED)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(rows.count):
            texts = [" ".join(rng.choices(_WORDS, k=rng.randint(*rows.words))) for _ in range(2)]
            roles = zip(("user", "assistant"), texts, strict=True)
            messages = [{"role": role, "content": text} for role, text in roles]
            out.write(json.dumps({"messages": messages}) + "\n")


def fewer(rows: Rows, count: int) -> Rows:
    """Return the first of these rows."""
    return replace(rows, count=count)
