"""Numbers of every training row, batch by batch, so that memory does not grow with the data set."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import numpy

    from gemma_ft.inspection.pieces import Vocabulary

    Array = numpy.ndarray[Any, Any]

SHARE_STEPS = 20
"""Steps from nothing to all in which shares are counted."""

_BATCH_TOKENS = 500_000
_BATCH_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """Something by which rows are ranked."""

    name: str
    title: str
    unit: str
    """tokens, share or bits."""
    highest: bool
    """Whether the highest values are the notable ones."""
    most: int = 3
    """Rows that are listed."""
    unless: float | None = None
    """A value that is nothing to be told."""


MEASURES = (
    Measure(name="full_length", title="longest", unit="tokens", highest=True, most=5),
    Measure(name="trained", title="fewest tokens learned", unit="tokens", highest=False),
    Measure(name="trained_share", title="lowest share learned", unit="share", highest=False),
    Measure(name="distinct", title="most repetitive (distinct tokens of all)", unit="share", highest=False),
    Measure(name="bytes", title="most tokens that are single bytes", unit="share", highest=True, unless=0),
    Measure(name="rarity", title="rarest tokens, on average", unit="bits", highest=True),
)
"""What the longest and the strangest rows are found by."""


@dataclass(slots=True)
class Measured:
    """What was counted."""

    full_lengths: Counter[int] = field(default_factory=Counter)
    """Rows by their tokens before the cut."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by their tokens."""
    trained_shares: list[int] = field(default_factory=lambda: [0] * SHARE_STEPS)
    """Rows by the share that is learned."""
    top: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """By measure, the most notable rows: value and number."""


@dataclass(frozen=True, slots=True)
class _Batch:
    start: int
    """Number of its first row."""
    ids: "Array"
    offsets: "Array"
    """Where each row begins in ids, and where the last one ends."""
    columns: dict[str, "Array"]

    @property
    def lengths(self) -> "Array":
        import numpy as np

        return np.diff(self.offsets)

    def sums(self, values: "Array") -> "Array":
        """Add the values of each row's tokens."""
        import numpy as np

        reached = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
        sums: Array = reached[self.offsets[1:]] - reached[self.offsets[:-1]]
        return sums


def measure_rows(rows: "datasets.Dataset", vocabulary: "Vocabulary", max_length: int) -> Measured:
    """Measure every row, in two passes: the second one knows how rare each token is.

    Args:
        rows: The training rows, with the columns of `data.tokenise`.
        vocabulary: That of the tokenizer.
        max_length: Most tokens of a row.
    """
    import numpy as np

    measured = Measured()
    rankings = {measure.name: _Ranking(measure) for measure in MEASURES}
    seen = np.zeros(vocabulary.size, np.int64)
    is_byte = np.zeros(vocabulary.size, bool)
    is_byte[list(vocabulary.byte_ids)] = True
    for batch in _batches(rows, max_length):
        seen += np.bincount(batch.ids, minlength=vocabulary.size)
        _count(batch, measured)
        for name, values in _row_values(batch, is_byte).items():
            rankings[name].add(values, batch.start)
    bits = -np.log2(np.maximum(seen, 1) / seen.sum())
    for batch in _batches(rows, max_length):
        rankings["rarity"].add(batch.sums(bits[batch.ids]) / batch.lengths, batch.start)
    measured.top = {name: ranking.rows() for name, ranking in rankings.items()}
    return measured


def _batches(rows: "datasets.Dataset", max_length: int) -> Iterator[_Batch]:
    """Read the rows in batches of few enough tokens."""
    import numpy as np

    names = ["full_length", "trained"]
    table = rows.select_columns(["input_ids", *names]).with_format("arrow")
    start = 0
    for part in table.iter(batch_size=max(1, min(_BATCH_ROWS, _BATCH_TOKENS // max_length))):
        ids = part["input_ids"].combine_chunks()
        offsets = ids.offsets.to_numpy()
        yield _Batch(
            start,
            ids.values.to_numpy()[offsets[0] : offsets[-1]],
            (offsets - offsets[0]).astype(np.int64),
            {name: part[name].to_numpy() for name in names},
        )
        start += part.num_rows


def _count(batch: _Batch, measured: Measured) -> None:
    import numpy as np

    for counter, lengths in (
        (measured.full_lengths, batch.columns["full_length"]),
        (measured.lengths, batch.lengths),
    ):
        values, rows = np.unique(lengths, return_counts=True)
        counter.update(dict(zip(values.tolist(), rows.tolist(), strict=True)))
    shares = batch.columns["trained"] / batch.lengths
    steps = np.minimum((shares * SHARE_STEPS).astype(np.int64), SHARE_STEPS - 1)
    for step, rows in enumerate(np.bincount(steps, minlength=SHARE_STEPS).tolist()):
        measured.trained_shares[step] += rows


def _row_values(batch: _Batch, is_byte: "Array") -> dict[str, "Array"]:
    return {
        "full_length": batch.columns["full_length"],
        "trained": batch.columns["trained"],
        "trained_share": batch.columns["trained"] / batch.lengths,
        "distinct": _count_distinct(batch, len(is_byte)) / batch.lengths,
        "bytes": batch.sums(is_byte[batch.ids]) / batch.lengths,
    }


def _count_distinct(batch: _Batch, vocabulary_size: int) -> "Array":
    """Count the different tokens of each row by sorting numbers made of row and token."""
    import numpy as np

    kind = np.int32 if len(batch.lengths) * vocabulary_size < 2**31 else np.int64
    first = np.arange(len(batch.lengths), dtype=kind) * np.array(vocabulary_size, kind)
    marked: Array = np.repeat(first, batch.lengths) + batch.ids.astype(kind, copy=False)
    marked.sort()
    new = np.concatenate([[True], marked[1:] != marked[:-1]])
    return np.bincount(marked[new] // vocabulary_size, minlength=len(batch.lengths))


class _Ranking:
    """The few rows that stand out by one measure; of equals, the first."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._best: list[tuple[float, int]] = []

    def add(self, values: "Array", start: int) -> None:
        """Take in the values of a batch, whose first row has the number `start`."""
        import numpy as np

        order = np.argsort(-values if self._measure.highest else values, kind="stable")[: self._measure.most]
        found = [(float(values[place]), start + int(place)) for place in order]
        sign = -1 if self._measure.highest else 1
        ranked = sorted([*self._best, *found], key=lambda entry: (sign * entry[0], entry[1]))
        self._best = ranked[: self._measure.most]

    def rows(self) -> list[tuple[float, int]]:
        """Return value and number of each, the most notable first."""
        return [(value, row) for value, row in self._best if value != self._measure.unless]
