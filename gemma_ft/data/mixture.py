"""How many rows of each source a mixture takes, and in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_ft.config.dataset import MixtureWeights, StoppingStrategy
from gemma_ft.data.holdout import rank

if TYPE_CHECKING:
    import numpy

    Rows = numpy.ndarray[Any, numpy.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredient:
    """The rows of one source that may be trained on."""

    rows: "Rows"
    """Their numbers, in the order of the source."""
    digests: Sequence[bytes]
    """Their content."""
    tokens: "Rows"
    """Their lengths in tokens."""
    weight: float


def mix(
    ingredients: Mapping[str, Ingredient],
    *,
    weights: MixtureWeights,
    stopping_strategy: StoppingStrategy,
    seed: int,
) -> list[tuple[str, int]]:
    """Choose rows of every source by its weight and shuffle them together.

    With first_exhausted the mixture is the largest in which no row stands twice: the source that is scarcest
    for its weight is used whole. With all_exhausted every row of every source is used, and the others start
    over as often as their weights ask. A source's rows are drawn in an order that content and seed shuffle,
    so that a share of it is a fair sample.

    Args:
        ingredients: The sources by name; each has rows.
        weights: Whether the weights are shares of the tokens or of the rows.
        stopping_strategy: Where the mixture ends.
        seed: Draws and shuffles otherwise.

    Returns:
        Name of the source and number of the row, in the order of training.
    """
    import numpy as np

    amounts = {
        name: np.asarray(part.tokens if weights is MixtureWeights.tokens else np.ones(len(part.rows)), float)
        for name, part in ingredients.items()
    }
    sizes = {name: amounts[name].sum() / part.weight for name, part in ingredients.items()}
    whole = (
        min(sizes.values()) if stopping_strategy is StoppingStrategy.first_exhausted else max(sizes.values())
    )
    drawn: list[tuple[bytes, str, int]] = []
    for name, part in ingredients.items():
        ranks = [rank(digest, seed) for digest in part.digests]
        order = np.array(sorted(range(len(ranks)), key=lambda place: (ranks[place], place)), dtype=np.int64)
        turns = _draw(amounts[name][order], whole * part.weight)
        for number, place in enumerate(turns):
            chosen = int(order[place])
            mark = b"%d:%s:" % (number // len(order), name.encode()) + part.digests[chosen]
            drawn.append((rank(mark, seed), name, int(part.rows[chosen])))
    return [(name, row) for _, name, row in sorted(drawn)]


def _draw(amounts: "Rows", wanted: float) -> "Rows":
    """Take rows in turn, over and over, until their amounts come nearest to what is wanted; at least one.

    Returns:
        Places in `amounts`.
    """
    import numpy as np

    passes, rest = divmod(wanted, amounts.sum())
    if np.isclose(rest, amounts.sum()):  # a whole pass, but for rounding
        passes, rest = passes + 1, 0.0
    reached = np.concatenate([[0.0], np.cumsum(amounts)])
    partial = int(np.abs(reached - rest).argmin())
    once = np.arange(len(amounts))
    if passes == 0:
        return once[: max(partial, 1)]
    return np.concatenate([np.tile(once, int(passes)), once[:partial]])
