"""Rows that are left out, by cause, with the places of a few."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_ft.data.parts import Part
    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.data.store import StoredTokens

_PLACES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedRows:
    """Rows that are left out for one cause."""

    cause: str
    rows: int
    messages: tuple[str, ...]
    """The first few, each with its place."""
    held_out: bool = False
    """Whether they stand in an eval_split."""


def find_dropped(data: "PreparedData") -> Iterator[DroppedRows]:
    """Join the counts of the rows that are left out with the first few places of each cause.

    Args:
        data: The prepared data.
    """
    messages = _first_messages(part.train for part in data.parts)
    for part in data.parts:
        for cause, places in _copies(part).items():
            messages[cause] = [*messages[cause], *places][:_PLACES]
    yield from _by_cause(data.facts["rows_dropped"], messages, held_out=False)
    messages = _first_messages(part.held_out for part in data.parts if part.held_out)
    yield from _by_cause(data.facts["held_out_dropped"], messages, held_out=True)


def _by_cause(
    causes: Mapping[str, int], messages: Mapping[str, list[str]], *, held_out: bool
) -> Iterator[DroppedRows]:
    for cause, rows in sorted(causes.items(), key=lambda item: -item[1]):
        yield DroppedRows(cause=cause, rows=rows, messages=tuple(messages[cause]), held_out=held_out)


def _first_messages(stored: "Iterable[StoredTokens]") -> dict[str, list[str]]:
    messages: dict[str, list[str]] = defaultdict(list)
    for tokens in stored:
        with tokens.dropped.open(encoding="utf-8") as lines:
            for entry in map(json.loads, lines):
                if len(messages[entry["cause"]]) < _PLACES:
                    messages[entry["cause"]].append(entry["message"])
    return messages


def _copies(part: "Part") -> dict[str, list[str]]:
    """Name the first few rows of a source that stand elsewhere too."""
    return {
        cause: [part.train.rows[int(row)]["where"] for row in islice(marks.nonzero()[0], _PLACES)]
        for cause, marks in part.left_out.items()
    }
