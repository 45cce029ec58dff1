"""Spikes in the logged losses are told from noise, a falling loss and rows of another kind."""

import math
import random

import pytest

from gemma_ft.training.spikes import find_spike


def falling(number, noise=0.0, seed=0):
    """The losses of a run: they fall fast, then slowly, with noise in proportion to them."""
    draw = random.Random(seed)
    curve = (1.2 + 8 * math.exp(-place / 8) + math.exp(-place / 150) for place in range(number))
    return [loss * math.exp(noise * draw.gauss(0, 1)) for loss in curve]


def spikes(losses):
    return [place for place in range(len(losses)) if find_spike(losses[: place + 1]) is not None]


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.2, 0.5])
def test_a_normal_run_has_none(noise):
    assert spikes(falling(300, noise)) == []


@pytest.mark.parametrize("at", [12, 30, 120])
def test_a_loss_far_above_those_before_it_is_one(at):
    losses = falling(at + 20, 0.03)
    losses[at] *= 3
    assert spikes(losses) == [at]
    assert find_spike(losses[: at + 1]) == pytest.approx(3, rel=0.4)


def test_a_run_that_rises_for_good_is_said_once():
    losses = falling(120, 0.03)
    losses[60:] = [loss * 4 for loss in losses[60:]]
    assert spikes(losses) == [60]


def test_the_first_losses_have_nothing_to_be_compared_with():
    assert spikes([1.0] * 9 + [50.0]) == []
    assert spikes([1.0] * 10 + [50.0]) == [10]
    assert find_spike([]) is None


def test_a_loss_as_high_as_one_before_is_part_of_the_run():
    losses = falling(200, 0.03)
    for place in range(60, 200, 25):
        losses[place] *= 2.2
    assert spikes(losses) == [60]


def test_losses_next_to_nothing_are_one():
    draw = random.Random(0)
    assert spikes([10 ** draw.uniform(-6, -2) for _ in range(200)]) == []
    assert spikes([0.0] * 30 + [0.5]) == [30]
