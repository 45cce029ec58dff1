"""One thing that was found out about this machine."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """What a finding means for training."""

    ok = "ok"
    note = "note"
    warning = "warning"
    error = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A line of the report."""

    topic: str
    """What it is about, in a word."""
    level: Level = Level.ok
    """error keeps this machine from training, or its GPU from being used."""
    says: str
    """What was found."""
    cure: str = ""
    """The command, or the step, that mends it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same in values, for programs."""


def first_line(error: BaseException) -> str:
    """Say an error in one line, whatever it holds."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


def in_gib(size: float) -> str:
    """Write bytes as people do."""
    return f"{size / 2**30:.1f} GiB"
