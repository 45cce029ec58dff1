"""Where rows came from, found again by their tokens: needed only when something went wrong with them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import numpy

    Array = numpy.ndarray[Any, Any]

_ROWS_AT_ONCE = 1000


def find_rows(rows: "datasets.Dataset", wanted: Sequence[Sequence[int]]) -> list[str]:
    """Name the rows that have these tokens, each place once; exact copies of a row are named too.

    Args:
        rows: Prepared rows, with the columns of `tokenise.COLUMNS`.
        wanted: The tokens of whole rows, without padding.
    """
    import numpy as np

    lengths = np.asarray(rows.with_format("numpy")["length"][:])
    found: dict[str, None] = {}
    by_length: dict[int, list[Array]] = {}
    for tokens in wanted:
        by_length.setdefault(len(tokens), []).append(np.asarray(tokens))
    for length, same_length in by_length.items():
        places = np.flatnonzero(lengths == length)
        for start in range(0, len(places), _ROWS_AT_ONCE):
            some = rows.select(places[start : start + _ROWS_AT_ONCE]).with_format("numpy")
            ids_BL = np.stack(some["input_ids"][:])
            hits = np.any([(ids_BL == tokens).all(axis=1) for tokens in same_length], axis=0)
            found |= dict.fromkeys(some.select(np.flatnonzero(hits)).with_format(None)["where"][:])
    return list(found)
