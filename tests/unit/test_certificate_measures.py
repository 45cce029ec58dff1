"""The distance between two models, from blocks of their logits."""

import pytest
import torch

from gemma_ft.exporting.certificate.measures import Side, measure

TOKENS, WORDS = 40, 5_500


class Blocks:
    """A head that yields given logits a thousand words at a time."""

    def __init__(self, logits):
        self.logits = logits

    def parts(self, states):
        for first in range(0, WORDS, 1000):
            yield first, min(WORDS, first + 1000), self.logits[:, first : first + 1000]


def sides_of(*logits, softcap=None):
    return [Side(Blocks(each), each, softcap) for each in logits]


@pytest.fixture(scope="module")
def logits():
    return torch.randn(TOKENS, WORDS, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture(scope="module")
def targets():
    return torch.randint(WORDS, (TOKENS,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e-1, 3.0, 60.0])
def test_figures_equal_those_of_whole_distributions(size, logits, targets):
    other = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) * size
    (one, _), (found,) = measure(sides_of(logits, other), [(0, 1)], targets)
    p, q = logits.double().log_softmax(1), other.double().log_softmax(1)
    kl = (p.exp() * (p - q)).sum(1)
    assert found.kl_mean == pytest.approx(kl.mean().item(), rel=1e-3)
    assert found.kl_max == pytest.approx(kl.max().item(), rel=1e-2)
    gaps = (logits - other).abs().double()
    assert found.logit_difference_mean == pytest.approx(gaps.mean().item(), rel=1e-5)
    assert found.logit_difference_max == gaps.max().item()
    assert found.same_likeliest_token == (p.argmax(1) == q.argmax(1)).double().mean().item()
    learned = torch.arange(TOKENS) % 3 == 0
    expected = torch.nn.functional.cross_entropy(logits[learned].double(), targets[learned])
    assert one.loss(learned) == pytest.approx(expected.item(), rel=1e-6)


def test_models_that_differ_by_a_constant_are_the_same_distribution(logits, targets):
    _, (found,) = measure(sides_of(logits, logits + 2.0), [(0, 1)], targets)
    assert found.kl_mean < 1e-6
    assert found.logit_difference_mean == pytest.approx(2.0, rel=1e-6)


def test_divergence_is_taken_from_the_first_of_a_pair(logits, targets):
    other = logits * 0.5
    _, (forth, back) = measure(sides_of(logits, other), [(0, 1), (1, 0)], targets)
    assert forth.kl_mean != pytest.approx(back.kl_mean, rel=0.1)


def test_logits_are_capped_as_gemma_2_does(logits, targets):
    capped = torch.tanh(logits / 5.0) * 5.0
    (one,), _ = measure(sides_of(logits, softcap=5.0), [], targets)
    assert torch.allclose(one.normalizer, capped.double().logsumexp(1), atol=1e-5)
    assert torch.equal(one.best_logits, capped.max(1).values)


def test_a_model_that_is_not_a_number_has_no_distance(logits, targets):
    other = logits.clone()
    other[3, 7] = torch.nan
    _, (found,) = measure(sides_of(logits, other), [(0, 1)], targets)
    assert found.kl_mean != found.kl_mean
