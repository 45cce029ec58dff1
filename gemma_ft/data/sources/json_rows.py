"""Rows of JSON Lines and JSON files."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ft.data.sources.foreign import HEAD_BYTES, refuse_foreign
from gemma_ft.data.sources.lines import decode_line, read_lines
from gemma_ft.data.sources.rows import Row, RowError, kind_of
from gemma_ft.data.sources.strict_json import find_fault, is_cut_off, parse_json, parse_marked
from gemma_ft.errors import DataError

_ONE_LIST = "Is the whole file one list? Then name it .json."


def jsonl_rows(file: Path, name: str) -> Iterator[Row | RowError]:
    """Read one object a line; blank lines are no rows."""
    for number, line in read_lines(file, name):
        if line and not line.isspace():
            where = f"{name}:{number}"
            try:
                yield Row(where, _as_object(_parse_line(line, where), where))
            except RowError as error:
                yield error


def count_jsonl_rows(file: Path, name: str) -> int:
    """Count the lines that are not blank, without parsing them."""
    return sum(1 for _, line in read_lines(file, name) if line and not line.isspace())


def _parse_line(line: bytes, where: str) -> Any:
    text = decode_line(line.rstrip(b"\r\n"), where)
    try:
        return parse_json(text, where, "Write one JSON object a line.")
    except RowError as error:
        if error.cause != "no JSON":
            raise
        if text.startswith("\ufeff"):  # a file that was joined from several has their marks inside
            return parse_json(text[1:], where, "Write one JSON object a line.")
        if line.strip() == b"[":
            raise RowError(where, "no JSON", _ONE_LIST, detail="(a line of only [)") from None
        if not line.endswith((b"\n", b"\r")) and is_cut_off(text):
            raise RowError(where, "a last line that is cut off", "Write the file again to its end.") from None
        raise


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    hint = _ONE_LIST if isinstance(value, list) else "Write {...}."
    raise RowError(where, f"{kind_of(value)} where an object with columns must stand", hint)


def json_rows(file: Path, name: str) -> Iterator[Row | RowError]:
    """Read the objects of a file's list, or of the only list in its object.

    Raises:
        DataError: The file is no JSON, or holds no such list.
    """
    value, faulty = _parse_file(file, name)
    lists = [value]
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        if any(isinstance(value.get(column), list) for column in _TURN_COLUMNS):
            lists = [[value]]  # one conversation, not a list of rows
    if len(lists) != 1 or not isinstance(lists[0], list):
        fault = find_fault(value) if faulty else None
        if fault:
            raise fault.at(name)
        raise DataError(
            f"{name}: neither a list of objects nor an object with one list. Use .jsonl for single rows."
        )
    for number, item in enumerate(lists[0], start=1):
        where = f"{name}:{number}"
        fault = find_fault(item) if faulty else None
        try:
            yield fault.at(where) if fault else Row(where, _as_object(item, where))
        except RowError as error:
            yield error


_TURN_COLUMNS = ("messages", "conversations")


def _parse_file(file: Path, name: str) -> tuple[Any, bool]:
    text = _read_text(file, name)
    try:
        return parse_marked(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            return [], False
        hint = "Correct it."
        if error.msg == "Extra data":
            hint = "Is it one object a line? Then name it .jsonl."
        elif is_cut_off(text):
            hint = "The file is cut off: write it again to its end."
        raise DataError(
            f"{name}:{error.lineno}: no JSON ({error.msg}, column {error.colno}). {hint}"
        ) from None
    except RecursionError:
        raise DataError(f"{name}: no JSON that can be read (nested too deeply). Correct it.") from None


def _read_text(file: Path, name: str) -> str:
    content = file.read_bytes().removeprefix(BOM_UTF8)
    refuse_foreign(file.suffix, content[:HEAD_BYTES], name)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, start = content.count(b"\n", 0, error.start) + 1, content.rfind(b"\n", 0, error.start)
        place = f"{name}:{line}: bad UTF-8 at byte {error.start - start} of the line"
        raise DataError(f"{place}. Save the file as UTF-8.") from None
