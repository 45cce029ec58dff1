"""Rows that come with an installed Python package."""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_ft.data.files import file_digests
from gemma_ft.data.rows import Row, RowError
from gemma_ft.errors import DataError

_CHATTERBOT = "chatterbot_corpus"
_MANY_ANSWERS = ("computers", "emotion")
"""Files of the corpus that list several answers to one remark, not the turns of a dialogue."""


class PackageRows:
    """The English conversations of the chatterbot-corpus package."""

    revision = None
    splits = ("train",)

    def __init__(self, path: str, prefix: str) -> None:
        if path.replace("-", "_") != _CHATTERBOT:
            raise DataError(f"{prefix}.path={path} is no package whose rows are known. Use {_CHATTERBOT}.")
        spec = find_spec(_CHATTERBOT)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f"{prefix}.path={path} is not installed. Run pip install chatterbot-corpus.")
        self._folder = Path(spec.submodule_search_locations[0]) / "data" / "english"

    def count(self, split: str) -> int:
        """Count the rows of a split."""
        return sum(1 for _ in self.rows(split, 0, None))

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0)."""
        rows = (row for file in sorted(self._folder.glob("*.yml")) for row in _file_rows(file))
        return islice(rows, start, stop)

    def identity(self, split: str) -> dict[str, Any]:
        """Hash the bytes of the corpus."""
        return {"path": _CHATTERBOT, "files": file_digests(sorted(self._folder.glob("*.yml")))}


def _file_rows(file: Path) -> Iterator[Row]:
    import yaml  # type: ignore[import-untyped]

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is six times as fast
    entries = yaml.load(file.read_bytes(), Loader=loader)["conversations"]
    for number, turns in enumerate(entries, start=1):
        if not isinstance(
            turns, list
        ):  # one entry of trivia.yml is a sentence: a question without its answer
            continue
        where = f"{_CHATTERBOT}/{file.name}:{number}"
        if file.stem in _MANY_ANSWERS:
            yield from (Row(where, _chat([turns[0], answer])) for answer in turns[1:])
        elif len(turns) > 1:
            yield Row(
                where, _chat(turns[: len(turns) // 2 * 2])
            )  # a last remark without an answer teaches nothing


def _chat(turns: list[Any]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": str(turn)} for i, turn in enumerate(turns)]}
