"""Rows of local files: JSON Lines, JSON, CSV, Parquet, or a folder of them."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_ft.config.places import DATA_SUFFIXES
from gemma_ft.data.sources.arrow_rows import count_parquet_rows, parquet_rows
from gemma_ft.data.sources.csv_rows import csv_rows
from gemma_ft.data.sources.folders import (
    describe_folder,
    find_data_files,
    find_own_splits,
    name_splits,
    split_files,
)
from gemma_ft.data.sources.json_rows import count_jsonl_rows, json_rows, jsonl_rows
from gemma_ft.data.sources.rows import Row, RowError, one_line, show
from gemma_ft.errors import DataError

_log = logging.getLogger("gemma_ft")


@dataclass(frozen=True, slots=True)
class _Format:
    read: Callable[[Path, str], Iterator[Row | RowError]]
    """Reads a file; the second argument is what it is called in messages."""
    count: Callable[[Path, str], int] | None = None
    """Counts its rows faster than by reading them."""


_FORMATS = dict(
    zip(
        DATA_SUFFIXES,
        (
            _Format(jsonl_rows, count_jsonl_rows),
            _Format(json_rows),
            _Format(csv_rows),
            _Format(parquet_rows, count_parquet_rows),
        ),
        strict=True,
    )
)


class LocalFiles:
    """A file, which is the split `train`, or the data files of a folder, whose names tell their splits.

    Args:
        path: The file or folder, as the user wrote it.
        prefix: The prefix of the keys that name it, for messages.
        place: Where it lies, if that is not its path.

    Raises:
        DataError: It is not there, or holds no data.
    """

    revision = None

    def __init__(self, path: str, prefix: str, place: Path | None = None) -> None:
        self._path = path
        key = f"{prefix}.path={show(path, 200)}"
        with _one_line_errors(key):
            self._place = place or _expand(path, key)
            self._is_folder = self._place.is_dir()
            if not self._is_folder:
                _check_file(self._place, path, key, prefix)
            self._files = find_data_files(self._place, key) if self._is_folder else [self._place]
            said = describe_folder(self._place, self._files) if self._is_folder else ""
        if said:  # what stands beside the training files is likely meant to be trained on as well
            level = logging.WARNING if find_own_splits(self._files) else logging.INFO
            _log.log(level, "%s: %s.", key, said)

    @property
    def splits(self) -> tuple[str, ...]:
        """Name the splits that the files' names tell."""
        return name_splits(self._files) if self._is_folder else ("train",)

    def count(self, split: str) -> int:
        """Count the rows of a split, those that cannot be used as well."""
        return sum(self._count_file(file) for file in self._split_files(split))

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0)."""
        files = self._split_files(split)
        rows = (row for file in files for row in self._file_rows(file, alone=len(files) == 1))
        return islice(rows, min(start, sys.maxsize), None if stop is None else min(stop, sys.maxsize))

    def identity(self, split: str) -> dict[str, Any]:
        """Hash the bytes of the split's files."""
        return {
            "files": {file.name: file_digest(file, self._name(file)) for file in self._split_files(split)}
        }

    def _split_files(self, split: str) -> Sequence[Path]:
        return split_files(self._files, split) if self._is_folder else self._files

    def _name(self, file: Path) -> str:
        return show(Path(self._path, file.name) if self._is_folder else self._path, 400)

    def _count_file(self, file: Path) -> int:
        count = _FORMATS[file.suffix.lower()].count
        name = self._name(file)
        with _one_line_errors(name):
            return count(file, name) if count else sum(1 for _ in self._file_rows(file, alone=True))

    def _file_rows(self, file: Path, *, alone: bool) -> Iterator[Row | RowError]:
        name = self._name(file)
        empty = True
        with _one_line_errors(name):
            for row in _FORMATS[file.suffix.lower()].read(file, name):
                empty = False
                yield row
        if empty and not alone:
            _log.warning("%s holds no row. Is it complete?", name)


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = one_line(error.strerror or error)
        raise DataError(
            f"{name}: cannot be read ({cause}). Check that it is a file that you may read."
        ) from None
    except MemoryError:
        raise DataError(
            f"{name}: does not fit into memory. Write it as .jsonl, which is read by lines."
        ) from None


def _expand(path: str, key: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # the home of nobody
        raise DataError(f"{key} cannot be found ({one_line(error)}). Check the path.") from None


def _check_file(file: Path, path: str, key: str, prefix: str) -> None:
    if file.is_file():
        if file.suffix.lower() not in _FORMATS:
            raise DataError(f"{key} has an unknown extension. Use one of {', '.join(_FORMATS)}.")
        return
    if file.exists():
        raise DataError(f"{key} is a pipe or a device, not a file. Write the rows into a file first.")
    if file.is_symlink():
        raise DataError(f"{key} is a link that leads nowhere. Check where it points.")
    like_hub = path.count("/") <= 1 and not file.suffix and not path.startswith((".", "~", "/"))
    hint = f"Check the path; for a hub id add {prefix}.source=hub." if like_hub else "Check the path."
    raise DataError(f"{key} is no file or folder here. {hint}")


def file_digest(file: Path, name: str) -> str:
    """Hash the bytes of a file without holding them in memory.

    Args:
        file: The file.
        name: What it is called in messages.

    Raises:
        DataError: It cannot be read.
    """
    with _one_line_errors(name), file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
