"""Rows of local files: JSON Lines, JSON, CSV, Parquet, or a folder of them."""

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_ft.data.rows import Row, RowError
from gemma_ft.errors import DataError

_SHARD = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")
_HELD_OUT = ("test", "valid", "val", "dev", "eval")
_BATCH_ROWS = 512


class LocalFiles:
    """A file, or the data files of a folder.

    In a folder, the files whose stem starts with a split's name are that split. Where none starts with
    `train`, every file that is not named after a test or validation split is `train`. A single file is
    `train`, whatever its name.
    """

    revision = None

    def __init__(self, path: str, prefix: str) -> None:
        self._path = Path(path).expanduser()
        if self._path.is_dir():
            self._files = _data_files(self._path)
        elif self._path.is_file():
            self._files = [self._path]
        else:
            like_hub = path.count("/") <= 1 and not self._path.suffix and not path.startswith((".", "~", "/"))
            hint = "Check the path" + (f"; for a hub id add {prefix}.source=hub." if like_hub else ".")
            raise DataError(f"{prefix}.path={path} is no file or folder here. {hint}")
        for file in self._files:
            _reader(file)

    @property
    def splits(self) -> tuple[str, ...]:
        """Name the splits that the files' names tell."""
        names = {_SHARD.sub("", file.stem) or file.stem for file in self._files}
        return (
            tuple(dict.fromkeys(["train", *sorted(names)]))
            if self._split_files("train")
            else tuple(sorted(names))
        )

    def count(self, split: str) -> int:
        """Count the rows of a split."""
        return sum(1 for _ in self.rows(split, 0, None))

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0)."""
        rows = (row for file in self._split_files(split) for row in _file_rows(file))
        return islice(rows, start, stop)

    def identity(self, split: str) -> dict[str, Any]:
        """Hash the bytes of the split's files."""
        return {"path": str(self._path), "files": file_digests(self._split_files(split))}

    def _split_files(self, split: str) -> list[Path]:
        if split == "train" and self._path.is_file():
            return self._files
        named = [file for file in self._files if re.match(re.escape(split) + r"(?![A-Za-z])", file.stem)]
        if split == "train" and not named:
            return [file for file in self._files if not file.stem.startswith(_HELD_OUT)]
        return named


def file_digests(files: Sequence[Path]) -> dict[str, str]:
    """Hash the bytes of files, in their order; none is held in memory."""
    digests = {}
    for file in files:
        try:
            with file.open("rb") as content:
                digests[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error}). Check the file.") from None
    return digests


def _data_files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _READERS and not f.name.startswith("."))
    if not files:
        raise DataError(f"dataset.path={folder} holds no data file. Put {', '.join(_READERS)} files there.")
    return files


def _reader(file: Path) -> Callable[[Path], Iterator[Row | RowError]]:
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"dataset.path={file} has an unknown extension. Use one of {', '.join(_READERS)}.")
    return reader


def _file_rows(file: Path) -> Iterator[Row | RowError]:
    try:
        yield from _reader(file)(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}). Check the file.") from None


def _text_lines(file: Path) -> Iterator[str]:
    """Decode line by line, so that a byte that is no UTF-8 is found on its line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file}:{number}: byte {error.start + 1} is no UTF-8. Save the file as UTF-8."
                ) from None


def _jsonl_rows(file: Path) -> Iterator[Row | RowError]:
    for number, line in enumerate(_text_lines(file), start=1):
        if line.strip():
            where = f"{file}:{number}"
            try:
                yield Row(where, _as_object(_parse(line.rstrip("\r\n"), where), where))
            except RowError as error:
                yield error


def _parse(text: str, where: str, hint: str = "Write one JSON object a line.") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error.msg}, column {error.colno}). {hint}") from None
    except (ValueError, RecursionError) as error:  # endless digits, endless brackets
        raise DataError(f"{where}: no JSON that can be read ({error}). {hint}") from None


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
        raise DataError(f"{where}: {kind} where an object with columns must stand. Write {{...}}.")
    return value


def _json_rows(file: Path) -> Iterator[Row | RowError]:
    value = _parse("".join(_text_lines(file)), str(file), "Is it one object a line? Then name it .jsonl.")
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(
            f"{file}: neither a list of objects nor an object with one list. Use .jsonl for single rows."
        )
    for number, item in enumerate(value, start=1):
        yield Row(f"{file}:{number}", _as_object(item, f"{file}:{number}"))


def _csv_rows(file: Path) -> Iterator[Row | RowError]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(_text_lines(file), strict=True)
    first = 1
    header: list[str] | None = None
    try:
        for fields in reader:
            where, first = f"{file}:{first}", reader.line_num + 1
            if header is None:
                header = fields
            elif fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"{where}: {len(fields)} fields under a header of {len(header)}. Quote commas."
                    )
                yield Row(where, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{file}:{first}: no CSV ({error}). Check the quotes.") from None


def _parquet_rows(file: Path) -> Iterator[Row | RowError]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}:{number}", values)
    except pyarrow.ArrowException as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{file}:{number + 1}: no Parquet that can be read ({cause}). Write it again."
        ) from None


_READERS: dict[str, Callable[[Path], Iterator[Row | RowError]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
