"""Sides that take turns, and what their figures come to."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

Found = TypeVar("Found")


def take_turns(
    sides: Mapping[str, Callable[[int], Found]], repeats: int, say: Callable[[str], None] = print
) -> dict[str, list[Found]]:
    """Measure each side `repeats` times, in an order that turns round, and return what each gave.

    Args:
        sides: Names and what measures them, given the repeat.
        repeats: How often.
        say: Tells what is done.
    """
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for repeat in range(repeats):
        names = list(sides)
        for name in names if repeat % 2 == 0 else reversed(names):
            found[name].append(sides[name](repeat))
            say(f"repeat {repeat + 1} of {repeats}: {name}: {found[name][-1]}")
    return found


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return median, lowest and highest, with so many significant digits."""
    figures = {"median": median(values), "low": min(values), "high": max(values)}
    return {name: significant(value, digits) for name, value in figures.items()}


def ratios(ours: Sequence[float], peers: Sequence[float]) -> dict[str, float]:
    """Return the spread of ours / theirs within each repeat."""
    return spread([one / other for one, other in zip(ours, peers, strict=True)])


def significant(value: float, digits: int = 3) -> float:
    """Round to significant digits."""
    return float(f"{value:.{digits}g}")
