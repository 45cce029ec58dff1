"""What a run measured at its first start, kept in its folder with what it holds for."""

from pathlib import Path
from typing import Any

from gemma_ft.runs import read_json, write_json

_CIRCUMSTANCES = "chosen_for"


def keep(file: Path, choice: dict[str, Any], circumstances: dict[str, Any]) -> None:
    """Write a choice down."""
    write_json(file, {**choice, _CIRCUMSTANCES: circumstances})


def recall(file: Path, circumstances: dict[str, Any]) -> dict[str, Any] | None:
    """Return the choice of an earlier start; None where there is none, or where it was made for others."""
    if not file.is_file():
        return None
    content: dict[str, Any] = read_json(file)
    return content if content.get(_CIRCUMSTANCES) == circumstances else None
