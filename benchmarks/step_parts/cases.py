"""What is trained: models, rows, batches."""

from dataclasses import dataclass, replace
from typing import Any

_GEMMA_1 = {
    "model_type": "gemma",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 256_000,
}
_GEMMA_3 = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "vocab_size": 262_144,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny, 256k words": _GEMMA_1,
    "tiny, 2k words": _GEMMA_1 | {"vocab_size": 2048},
    "270M": _GEMMA_3,
}
"""Sizes by their names in config.json: the bundled model's with Gemma's vocabulary, and Gemma 3 270M's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Chats of one question and one answer."""

    words: tuple[int, int]
    """Fewest and most words of the question and of the answer each; nearly all are one token."""
    count: int


SHORT, LONG, MIXED = (
    Rows(words=(10, 17), count=400),
    Rows(words=(250, 285), count=200),
    Rows(words=(20, 180), count=400),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A run that all sides make."""

    says: str
    shape: str
    rows: Rows
    max_length: int
    micro_batch: int
    accumulation: int
    steps: int
    packing: bool = False
    full: bool = False
    """Train all weights instead of adapters of rank 16."""
    goal: float | None = None
    """Tokens a second in multiples of TRL's that are aimed at."""
    memory_goal: float | None = None
    """Peak memory above the loaded model in multiples of TRL's."""
    our_words: tuple[str, ...] = ()
    """What our command line says besides."""


_PACKED = Case(
    says="packed rows of 512 tokens, 1 x 4",
    shape="tiny, 256k words",
    rows=MIXED,
    max_length=512,
    micro_batch=1,
    accumulation=4,
    steps=5,
    packing=True,
    goal=3,
    memory_goal=0.5,
)
_SHORT = Case(
    says="padded rows of about 40 tokens, 4 x 1",
    shape="tiny, 256k words",
    rows=SHORT,
    max_length=128,
    micro_batch=4,
    accumulation=1,
    steps=40,
    goal=1.3,
)
CASES = {
    "packed": _PACKED,
    "packed, default products": replace(
        _PACKED,
        says=f"{_PACKED.says}, matrices multiplied as torch does everywhere else",
        our_words=("trainer.cpu_matmul=default",),
    ),
    "long": Case(
        says="rows of 530 to 640 tokens, 2 x 2",
        shape="tiny, 256k words",
        rows=LONG,
        max_length=640,
        micro_batch=2,
        accumulation=2,
        steps=5,
        goal=3,
        memory_goal=0.5,
    ),
    "short": _SHORT,
    "small vocabulary": replace(
        _PACKED,
        says=f"{_PACKED.says}, 2,048 words",
        shape="tiny, 2k words",
        steps=25,
        goal=1,
        memory_goal=None,
    ),
    "small vocabulary, short": replace(
        _SHORT, says=f"{_SHORT.says}, 2,048 words", shape="tiny, 2k words", steps=90, goal=1
    ),
    "270M packed": replace(_PACKED, says=f"270M shape, {_PACKED.says}", shape="270M", steps=3),
    "270M short": replace(_SHORT, says=f"270M shape, {_SHORT.says}", shape="270M", steps=12),
    "full": replace(_PACKED, says=f"all weights, {_PACKED.says}", full=True, goal=None, memory_goal=None),
}
LEARNING_RATE, SEED, RANK = 2e-4, 42, 16
