"""Rows that come with an installed Python package."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_ft.data.sources.files import LocalFiles, file_digest
from gemma_ft.data.sources.rows import Row, RowError, Source, one_line, show
from gemma_ft.errors import DataError

_CHATTERBOT = "chatterbot_corpus"
_MANY_ANSWERS = ("computers", "emotion")
"""Files of the corpus that list several answers to one remark, not the turns of a dialogue."""


def open_package(path: str, prefix: str) -> Source:
    """Find the rows of an installed package, which is not imported.

    Args:
        path: `chatterbot_corpus`, or PACKAGE/file or PACKAGE/folder of any package's own data.
        prefix: The prefix of the keys that name it, for messages.

    Raises:
        DataError: It is not installed, or has no such rows.
    """
    package, _, below = path.replace("\\", "/").strip("/").partition("/")
    module = package.replace("-", "_")
    key = f"{prefix}.path={show(path, 200)}"
    if not below and module != _CHATTERBOT:
        raise DataError(
            f"{key} is no package whose rows are known. Use {_CHATTERBOT}, or name its file: PACKAGE/FILE."
        )
    folders = _package_folders(module, key)
    if not folders:
        raise DataError(f"{key} is not installed. Run pip install {show(package.replace('_', '-'))}.")
    if not below:
        return ChatterbotRows(folders[0] / "data" / "english")
    if ".." in Path(below).parts:
        raise DataError(f"{key} leads out of the package. Use dataset=local for files of your own.")
    places = [folder / below for folder in folders]
    return LocalFiles(path, prefix, next((place for place in places if place.exists()), places[0]))


def _package_folders(module: str, key: str) -> list[Path]:
    try:
        spec = find_spec(module) if module.isidentifier() else None
    except (ImportError, ValueError) as error:  # what stands in sys.modules by hand
        raise DataError(f"{key} cannot be located ({one_line(error)}). Name another package.") from None
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        raise DataError(f"{key} is a single module without files. Name a package.")
    return [Path(folder) for folder in spec.submodule_search_locations]


class ChatterbotRows:
    """The English conversations of the chatterbot-corpus package."""

    revision = None
    splits = ("train",)

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.yml"))

    def count(self, split: str) -> int:
        """Count the rows of a split."""
        return sum(1 for _ in self.rows(split, 0, None))

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0)."""
        rows = (row for file in self._files for row in _file_rows(file))
        return islice(rows, min(start, sys.maxsize), None if stop is None else min(stop, sys.maxsize))

    def identity(self, split: str) -> dict[str, Any]:
        """Hash the bytes of the corpus."""
        return {"files": {file.name: file_digest(file, str(file)) for file in self._files}}


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
            # A last remark without an answer teaches nothing.
            yield Row(where, _chat(turns[: len(turns) // 2 * 2]))


def _chat(turns: list[Any]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": str(turn)} for i, turn in enumerate(turns)]}
