"""Generate conversations, as long as UltraChat's or short ones, the same every time."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_SEED = 1
_ASKED_WORDS, _ANSWERED_WORDS = 52, 168
"""Mean words of a question and of an answer; 6 or 8 turns make about 1,200 of Gemma 3's tokens."""
_SHORT_WORDS = {"user": 20, "assistant": 50}
"""The same of a short conversation."""
_RARE_SHARE, _NEW_SHARE = 0.08, 0.25
"""Share of made-up words, and how many of these are so long that they stand nowhere else."""
_SYLLABLES = "bachidoerfugahelisjokalumermenoorpraquirasttuunverwiyoze"
"""Two letters each."""
_PARAGRAPH_WORDS = 40


def write_conversations(path: Path, rows: int, *, short: bool = False) -> None:
    """Write rows of messages: words of the chatterbot corpus, as frequent as there, and made-up ones.

    Args:
        path: JSON Lines.
        rows: How many conversations.
        short: Two turns of some 110 tokens in all, instead of 6 or 8 turns of some 1,200.
    """
    rng = np.random.default_rng(_SEED)
    known = np.array(_corpus_words())
    means = _SHORT_WORDS if short else {"user": _ASKED_WORDS, "assistant": _ANSWERED_WORDS}
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            roles = ["user", "assistant"] * (1 if short else int(rng.integers(3, 5)))
            messages = [{"role": role, "content": _text(rng, known, means[role])} for role in roles]
            file.write(json.dumps({"messages": messages}) + "\n")


def _corpus_words() -> list[str]:
    spec = find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The rows are made of the chatterbot-corpus package. Run: pip install chatterbot-corpus")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "english"
    files = [yaml.safe_load(file.read_bytes()) for file in sorted(folder.glob("*.yml"))]
    return [word for file in files for talk in file["conversations"] for word in " ".join(talk).split()]


def _text(rng: Any, known: Any, mean: int) -> str:
    words = rng.choice(known, max(3, int(mean * rng.lognormal(-0.18, 0.6)))).tolist()
    for place in rng.integers(0, len(words), int(_RARE_SHARE * len(words))):
        starts = 2 * rng.integers(0, len(_SYLLABLES) // 2, 6 if rng.random() < _NEW_SHARE else 3)
        words[place] = "".join(_SYLLABLES[start : start + 2] for start in starts)
    paragraphs = range(0, len(words), _PARAGRAPH_WORDS)
    return "\n\n".join(" ".join(words[start : start + _PARAGRAPH_WORDS]) for start in paragraphs)
