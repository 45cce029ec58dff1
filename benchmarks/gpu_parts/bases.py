"""Gemmas of full size with made-up weights, and rows to train on: nothing is downloaded."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import checkpoints

SHAPES = ("tiny", "2b", "7b")
_WORDS = ("the", "mouse", "of", "my", "machine", "does", "not", "work", "and", "what", "can", "be", "done")
_TURNS, _ASKED_WORDS, _ANSWERED_WORDS = 6, 52, 168
"""As long as UltraChat's."""
_ROWS = 160


def base_bytes(shape: str) -> int:
    """Return what a base takes on the disk."""
    return 0 if shape == "tiny" else checkpoints.base_bytes(shape)


def build_base(shape: str, folder: Path) -> Path:
    """Write a base in bf16, unless it is there, and return its folder.

    The weights are normal with a standard deviation of 0.02, so that losses are finite in fp16 too; words
    and sizes are those of Gemma 1. The tokenizer is the bundled one; its
    2,048 words are the first of 256,000.

    Args:
        shape: tiny (the bundled model), 2b or 7b.
        folder: Where bases go.

    Raises:
        OSError: The disk has no room.
    """
    from gemma_ft.modeling.tiny import load_tiny

    if shape == "tiny":
        return load_tiny()
    base = folder / f"gemma-{shape}"
    if base.exists():
        return base
    free = shutil.disk_usage(folder).free
    if free < 1.05 * base_bytes(shape):
        raise OSError(
            f"{base_bytes(shape) / 2**30:.1f} GiB asked for, {free / 2**30:.1f} GiB free in {folder}"
        )
    beside = folder / f".gemma-{shape}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(load_tiny(), beside, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((beside / "config.json").read_text()) | gemma_sizes(shape)
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    checkpoints.write_normal(beside / "model.safetensors", checkpoints.base_shapes(shape), "BF16")
    beside.rename(base)
    return base


def gemma_sizes(shape: str) -> dict[str, Any]:
    """Return the sizes of a Gemma 1, by their names in config.json."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "head_dim")
    config = checkpoints.model_config(shape)
    return {name: config[name] for name in names}


def write_rows(folder: Path) -> dict[str, Path]:
    """Write conversations as long as UltraChat's and quotes as short as the English quotes."""
    rng = random.Random(1)

    def text(mean: int) -> str:
        return " ".join(rng.choices(_WORDS, k=max(3, int(mean * rng.lognormvariate(-0.18, 0.6)))))

    means = {"user": _ASKED_WORDS, "assistant": _ANSWERED_WORDS}
    turns = [*means] * (_TURNS // 2)
    chats = [{"messages": [{"role": r, "content": text(means[r])} for r in turns]} for _ in range(_ROWS)]
    quotes = [{"quote": text(25), "author": text(3)} for _ in range(_ROWS)]
    files = {"chats": folder / "chats.jsonl", "quotes": folder / "quotes.jsonl"}
    for name, rows in (("chats", chats), ("quotes", quotes)):
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files
