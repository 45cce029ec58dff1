import hashlib
from collections import Counter

import numpy as np
import pytest

from gemma_ft.config.dataset import MixtureWeights, StoppingStrategy
from gemma_ft.data.mixture import Ingredient, mix

FIRST, ALL = StoppingStrategy.first_exhausted, StoppingStrategy.all_exhausted


def source(name, lengths, weight):
    return Ingredient(
        rows=np.arange(len(lengths)),
        digests=[hashlib.sha256(f"{name}{i}".encode()).digest() for i in range(len(lengths))],
        tokens=np.array(lengths),
        weight=weight,
    )


def mixed(sources, weights=MixtureWeights.tokens, stopping_strategy=FIRST, seed=1):
    parts = {name: source(name, *what) for name, what in sources.items()}
    return mix(parts, weights=weights, stopping_strategy=stopping_strategy, seed=seed)


def shares(order, sources, of_tokens):
    amounts = Counter()
    for name, row in order:
        amounts[name] += sources[name][0][row] if of_tokens else 1
    return {name: amount / amounts.total() for name, amount in amounts.items()}


UNEVEN = {"long": ([300] * 200, 3.0), "short": ([10, 20, 30] * 2000, 1.0)}


def test_weights_are_shares_of_the_tokens_that_are_read():
    found = shares(mixed(UNEVEN), UNEVEN, of_tokens=True)
    assert found == pytest.approx({"long": 0.75, "short": 0.25}, abs=0.002)


def test_weights_are_shares_of_the_rows_where_that_is_asked():
    found = shares(mixed(UNEVEN, weights=MixtureWeights.rows), UNEVEN, of_tokens=False)
    assert found == pytest.approx({"long": 0.75, "short": 0.25}, abs=0.002)


def test_only_the_proportion_of_the_weights_counts():
    tenfold = {name: (lengths, weight * 10) for name, (lengths, weight) in UNEVEN.items()}
    assert mixed(tenfold) == mixed(UNEVEN)


@pytest.mark.parametrize("weights", list(MixtureWeights))
def test_a_mixture_ends_with_its_scarcest_source_and_no_row_stands_twice(weights):
    order = mixed(UNEVEN, weights)
    assert len(set(order)) == len(order)
    whole = {
        name for name, (lengths, _) in UNEVEN.items() if sum(n == name for n, _ in order) == len(lengths)
    }
    assert len(whole) == 1


@pytest.mark.parametrize("weights", list(MixtureWeights))
def test_every_row_stands_in_a_mixture_that_ends_when_all_are_exhausted(weights):
    sources = {"big": ([7] * 101, 1.0), "small": ([9] * 10, 2.0)}
    order = mixed(sources, weights, ALL)
    assert set(order) == {("big", i) for i in range(101)} | {("small", i) for i in range(10)}
    found = shares(order, sources, of_tokens=weights is MixtureWeights.tokens)
    assert found["small"] == pytest.approx(2 / 3, abs=0.01)
    times = Counter(row for name, row in order if name == "small")
    assert max(times.values()) - min(times.values()) <= 1


def test_a_source_of_exactly_its_share_is_taken_once():
    sources = {"a": ([10] * 30, 0.3), "b": ([10] * 70, 0.7)}
    for strategy in StoppingStrategy:
        assert Counter(name for name, _ in mixed(sources, stopping_strategy=strategy)) == {"a": 30, "b": 70}


def test_a_source_with_a_tiny_weight_still_gives_a_row():
    order = mixed({"a": ([10] * 50, 1.0), "b": ([10] * 50, 1e-9)})
    assert Counter(name for name, _ in order) == {"a": 50, "b": 1}


def test_the_seed_draws_and_shuffles_the_same_way_each_time():
    assert mixed(UNEVEN) == mixed(UNEVEN)
    assert mixed(UNEVEN) != mixed(UNEVEN, seed=2)
    names = [name for name, _ in mixed(UNEVEN)]
    half = len(names) // 2
    assert names[:half].count("long") == pytest.approx(names[half:].count("long"), abs=30)


def test_new_rows_move_few_of_those_that_are_drawn():
    more = {**UNEVEN, "short": (UNEVEN["short"][0] + [20], 1.0)}
    drawn, again = (set(mixed(sources, MixtureWeights.rows)) for sources in (UNEVEN, more))
    assert len(drawn ^ again) <= 3
