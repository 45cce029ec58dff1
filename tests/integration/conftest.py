"""Runs in a folder of their own, with the bundled checkpoint at hand."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def train(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train through the command line's own entry, in this process; returns the run folder."""
    from gemma_ft.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> Path:
        assert main(list(words)) == code
        name = next(word[5:] for word in words if word.startswith("name="))
        return tmp_path / "outputs" / name

    return run
