"""How long rows are, as counts of each length: exact, and small however many rows there are."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

_BINS = 15
_DIVISIONS = (16, 15, 14, 12, 10, 8)


@dataclass(frozen=True, slots=True)
class Bin:
    """The rows of more than `above` and at most `up_to` tokens."""

    above: int
    up_to: int | None
    """None where the last bin is open."""
    rows: int


class Lengths:
    """The lengths of rows in tokens."""

    def __init__(self, counts: Mapping[int, int]) -> None:
        """Take each length with its number of rows; there is at least one."""
        self.counts = {length: counts[length] for length in sorted(counts)}
        self._lengths = list(self.counts)
        self._reached = list(accumulate(self.counts.values()))
        self.rows = self._reached[-1]
        self.tokens = sum(length * rows for length, rows in self.counts.items())
        self.shortest, self.longest = self._lengths[0], self._lengths[-1]
        self.mean = self.tokens / self.rows

    def quantile(self, share: float) -> int:
        """Return the least length that this share of the rows does not exceed."""
        return self._lengths[bisect_left(self._reached, share * self.rows)]

    def rows_up_to(self, length: int) -> int:
        """Count the rows that are no longer than this."""
        place = bisect_right(self._lengths, length)
        return self._reached[place - 1] if place else 0

    def tokens_beyond(self, length: int) -> int:
        """Count the tokens that are lost when rows are cut at a length."""
        return sum((each - length) * rows for each, rows in self.counts.items() if each > length)

    def bins(self, cut: int) -> list[Bin]:
        """Gather the rows in bins, with an edge where rows are cut.

        Args:
            cut: Tokens of the longest row that stays whole.
        """
        edges = self._edges(cut)
        bins = [Bin(low, high, self.rows_up_to(high) - self.rows_up_to(low)) for low, high in pairwise(edges)]
        rest = self.rows - self.rows_up_to(edges[-1])
        return [*bins, Bin(edges[-1], None, rest)] if rest else bins

    def _edges(self, cut: int) -> list[int]:
        if self.longest <= cut:
            usual = self.quantile(0.99)
            end = self.longest if self.longest <= 4 * usual else 2 * usual
            width = _nice(end / _BINS)
            return list(range(0, end + width, width))
        width = next((cut // parts for parts in _DIVISIONS if cut % parts == 0), -(-cut // 12))
        whole = [*range(0, cut, width), cut]
        return whole + list(range(cut + width, min(self.longest + width, 2 * cut), width))


def _nice(width: float) -> int:
    """Return the least of 1, 2, 5, 10, 20, 50, ... that is not below a width."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= width:
                return step * scale
        scale *= 10
