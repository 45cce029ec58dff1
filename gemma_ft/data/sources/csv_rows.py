"""Rows of CSV files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemma_ft.data.sources.lines import decode_line, read_lines
from gemma_ft.data.sources.rows import Row, RowError, show
from gemma_ft.errors import DataError

_LARGEST_CELL = 1 << 30
"""A quote that is never closed must not take the whole file into memory, however large it is."""


class _Lines:
    """Decodes lines for the csv library, and keeps their faults until their row is complete."""

    def __init__(self, file: Path, name: str) -> None:
        self._lines = read_lines(file, name)
        self._name = name
        self._faults: list[RowError] = []

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            try:
                yield decode_line(line, f"{self._name}:{number}")
            except RowError as error:
                self._faults.append(error)
                yield line.decode("utf-8", errors="replace")

    def take_fault(self) -> RowError | None:
        """Return the first fault since the last call."""
        faults, self._faults = self._faults, []
        return faults[0] if faults else None


def csv_rows(file: Path, name: str) -> Iterator[Row | RowError]:
    """Read a header and the rows under it; blank lines are no rows.

    Raises:
        DataError: The header names no columns, or a quote is out of place, so that the rest cannot be told.
    """
    csv.field_size_limit(_LARGEST_CELL)
    lines = _Lines(file, name)
    reader = csv.reader(iter(lines), strict=True)
    header: list[str] | None = None
    first = 1
    try:
        for fields in reader:
            where, first = f"{name}:{first}", reader.line_num + 1
            fault = lines.take_fault()
            if not fields:
                continue
            if header is None:
                if fault:
                    raise fault
                header = fields
                _check_header(header, where)
            else:
                yield fault or _row(header, fields, where)
    except csv.Error as error:
        raise DataError(f"{name}:{first}: no CSV ({error}). Check the quotes from this line on.") from None


def _row(header: Sequence[str], fields: Sequence[str], where: str) -> Row | RowError:
    if len(fields) == len(header):
        return Row(where, dict(zip(header, fields, strict=True)))
    detail = f"({len(fields)} under a header of {len(header)})"
    return RowError(where, "a wrong number of fields", "Quote texts that hold commas.", detail=detail)


def _check_header(header: Sequence[str], where: str) -> None:
    twice = [column for place, column in enumerate(header) if column in header[:place]]
    empty = [place for place, column in enumerate(header, start=1) if not column.strip()]
    other = next((mark for mark in ";\t|" if mark in header[0]), None)
    if len(header) == 1 and other:
        mark = "tabs" if other == "\t" else other
        raise DataError(f"{where}: one column, {show(header[0])}. Separate columns with commas, not {mark}.")
    if empty:
        raise DataError(
            f"{where}: column {empty[0]} has no name. Name it, or write the file without its index."
        )
    if twice:
        raise DataError(f"{where}: two columns are named {show(twice[0])}. Rename one.")
