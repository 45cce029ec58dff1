"""A row of a data set with its place, a row's fault, and which rows a split expression means."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Protocol

from gemma_ft.config.places import SPLIT_PART
from gemma_ft.errors import DataError

_SHOWN = 60
_KINDS = {
    type(None): "null",
    str: "text",
    bool: "true/false",
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    dict: "an object",
    list: "a list",
    tuple: "a list",
    bytes: "bytes",
    date: "a date",
    datetime: "a date",
    time: "a time",
    timedelta: "a duration",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its source."""

    where: str
    """File and line, or data set and row, each counted from 1."""
    values: dict[str, Any]
    """The columns; a value that could not be read is its RowError."""


class RowError(DataError):
    """Say why one row cannot be used; the rows after it still can.

    The line is `WHERE: PLACE CAUSE DETAIL. HINT`.

    Args:
        where: The row's place.
        cause: What is wrong, in the same words for the same kind of fault, without numbers and names.
            Dropped rows are counted by it.
        hint: What to do, a whole sentence.
        place: What the sentence is about, if it is not the row.
        detail: Numbers and names.
    """

    def __init__(self, where: str, cause: str, hint: str, place: str = "", detail: str = "") -> None:
        super().__init__(where, cause, hint, place, detail)  # all of them, so that it can be pickled
        self.where = where
        self.cause = cause

    def __str__(self) -> str:
        where, cause, hint, place, detail = self.args
        return f"{where}: {' '.join(filter(None, (place, cause, detail)))}. {hint}"


class Source(Protocol):
    """A place that rows come from."""

    @property
    def revision(self) -> str | None:
        """Tell the commit of the rows, where the source has commits."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Name the splits that can be read."""

    def count(self, split: str) -> int:
        """Count the rows of a split, those that cannot be used as well."""

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0).

        Yields:
            Each row, or its fault in its place.

        Raises:
            DataError: Nothing more can be read.
        """

    def identity(self, split: str) -> dict[str, Any]:
        """Tell what exactly the rows of a split are, in what JSON can hold: equal identities, equal rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPart:
    """A split, or a slice of it."""

    name: str
    start: str = ""
    """A row number, or a percentage with its sign; negative counts from the end; empty is the beginning."""
    stop: str = ""

    def bounds(self, count: Callable[[], int]) -> tuple[int, int | None]:
        """Resolve the slice to row numbers.

        Args:
            count: Counts the rows of the split; called only where the slice depends on it.

        Returns:
            The first row and the one after the last (none: to the end), counted from 0.
        """
        if not any(mark in self.start + self.stop for mark in "%-"):
            return int(self.start or 0), int(self.stop) if self.stop else None
        total = count()
        start = _position(self.start, total) if self.start else 0
        return start, _position(self.stop, total) if self.stop else total


def _position(text: str, total: int) -> int:
    number = int(text.removesuffix("%"))
    if text.endswith("%"):
        number = round(number * total / 100)  # the rounding of the datasets library, so that slices agree
    return min(max(number + total, 0) if number < 0 else number, total)


def parse_split(split: str, key: str) -> tuple[SplitPart, ...]:
    """Read a split expression: `train`, `train[:5%]`, `train[-10%:]`, `train[100:200]`, or several with `+`.

    Args:
        split: The expression.
        key: The configuration key that holds it, for the message.

    Raises:
        DataError: It is none.
    """
    matches = [SPLIT_PART.fullmatch(part.strip()) for part in split.split("+")]
    parts = [match.groupdict(default="") for match in matches if match]
    if len(parts) < len(matches):
        raise DataError(
            f'{key}={split} is no split. Write it like "train", "train[:5%]" or "train[100:200]".'
        )
    return tuple(SplitPart(**part) for part in parts)


def show(text: object, most: int = _SHOWN) -> str:
    """Write a name or value of the user's so that it fits into one line: escaped, and cut if it is long."""
    said = str(text)
    said = said if len(said) <= most else said[: most - 3] + "..."
    if said.isprintable():
        return said
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)


def kind_of(value: object) -> str:
    """Name what a value is in the words of data, not of Python."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"  # what libraries write for a missing value
    return next((_KINDS[kind] for kind in type(value).__mro__ if kind in _KINDS), "a value of another kind")


def one_line(error: object, most: int = 300) -> str:
    """Put what a library says into one line without its full stop."""
    return show(" ".join(str(error).split()), most).rstrip(".")
