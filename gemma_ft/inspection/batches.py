"""How full the batches are: what padding costs, and what packing gives."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_ft.inspection.lengths import Lengths

if TYPE_CHECKING:
    import datasets

_PACKED_TOGETHER = 1000
"""Rows that TRL packs at a time, the batch of `datasets.Dataset.map`; no sequence holds rows of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """What the model computes, and what it would with packing."""

    micro_batch_size: int
    padding: float
    """Share of what is computed that is padding, to the longest row of each micro-batch; 0 with packing."""
    row_fill: float
    """Mean length of a row, as a share of max_length."""
    packed_sequences: int
    """Sequences that packing makes, or would make."""
    packed_efficiency: float
    """Share of the places in them that hold a token."""
    fills: tuple[int, ...]
    """With packing: sequences by the share of their places that hold a token, in equal steps."""


def expected_padding(lengths: Lengths, micro_batch_size: int) -> float:
    """Return the share of places that are padding when rows of a random order share micro-batches.

    A micro-batch of b rows is as long as the longest of them, whose mean is the sum over lengths n of
    1 - F(n - 1)^b, F being the share of rows up to a length.

    Args:
        lengths: Lengths of the rows as they are trained on.
        micro_batch_size: Rows of a micro-batch.
    """
    longest, below, passed = 0.0, 0, 0
    for length, rows in lengths.counts.items():
        longest += (length - below) * (1 - (passed / lengths.rows) ** micro_batch_size)
        below, passed = length, passed + rows
    return 1 - lengths.mean / longest


def count_sequences(rows: "datasets.Dataset", max_length: int) -> int:
    """Count the sequences that `data.packing` would make of rows, in their order.

    Args:
        rows: The training rows, with the columns of `data.tokenise`.
        max_length: Tokens of a sequence.
    """
    return sum(count_packed(lengths, max_length) for lengths in _packed_together(rows))


def _packed_together(rows: "datasets.Dataset") -> Iterator[Lengths]:
    table = rows.select_columns(["length"]).with_format("arrow")
    for batch in table.iter(batch_size=_PACKED_TOGETHER):
        yield Lengths(Counter(batch["length"].to_pylist()))


def count_packed(lengths: Lengths, max_length: int) -> int:
    """Count the sequences that best-fit decreasing fills, without laying out a single row.

    Rows go, longest first, where the least room is left that takes them. Those of one length fill all
    sequences of one room at once, since each takes as many as fit before the next one is begun.

    Args:
        lengths: Lengths of the rows, none above max_length.
        max_length: Tokens of a sequence.
    """
    rooms = _Rooms(max_length)
    for length in reversed(lengths.counts):
        rows = lengths.counts[length]
        while rows:
            free, sequences = rooms.tightest(length)
            each = min(free // length, rows)
            filled = min(sequences, rows // each)
            rooms.move(filled, free, free - each * length)
            rows -= filled * each
    return rooms.opened


class _Rooms:
    """Begun sequences by the tokens that they still take."""

    def __init__(self, max_length: int) -> None:
        self.opened = 0
        self._sequences = [0] * (max_length + 1)
        self._present = 0
        """A bit for each room that some begun sequence has: the next one is found at once."""

    def tightest(self, length: int) -> tuple[int, int]:
        """Find the least room for a length, and how many sequences have it; any number are empty."""
        fitting = self._present >> length
        if not fitting:
            return len(self._sequences) - 1, sys.maxsize
        room = length + (fitting & -fitting).bit_length() - 1
        return room, self._sequences[room]

    def move(self, sequences: int, room: int, left: int) -> None:
        """Fill sequences, so that they have less room left."""
        if self._sequences[room]:
            self._sequences[room] -= sequences
            if not self._sequences[room]:
                self._present ^= 1 << room
        else:
            self.opened += sequences
        self._sequences[left] += sequences
        self._present |= 1 << left
