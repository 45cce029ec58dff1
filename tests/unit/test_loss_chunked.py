"""The chunked loss is plain cross-entropy: its value, its metrics and every gradient."""

import pytest
import torch
from torch.nn import functional

from gemma_ft.config.trainer import LossHeadMethod
from gemma_ft.training.loss.chunked import score_in_chunks
from gemma_ft.training.loss.heads import LossHead

WORDS, WIDTH, TOKENS = 3001, 48, 70
SCALE = 8 / 53
"""As tokens of a step and processes divide a sum."""


def draw(dtype, *, seed=0, spread=0.5):
    """Return hidden states, a head and targets; words 3 and 4 are alike, so that they tie."""
    source = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(TOKENS, WIDTH, generator=source).to(dtype).requires_grad_()
    weight_VH = torch.randn(WORDS, WIDTH, generator=source) * spread
    weight_VH[4] = weight_VH[3]
    targets_N = torch.randint(WORDS, (TOKENS,), generator=source)
    return hidden_NH, weight_VH.to(dtype).requires_grad_(), targets_N


def plain(hidden_NH, weight_VH, targets_N, soft_cap):
    """Return the summed loss as transformers computes it, and its logits."""
    logits_NV = functional.linear(hidden_NH, weight_VH)
    if soft_cap is not None:
        logits_NV = torch.tanh(logits_NV / soft_cap) * soft_cap
    logits_NV = logits_NV.double() if logits_NV.dtype is torch.float64 else logits_NV.float()
    return functional.cross_entropy(logits_NV, targets_N, reduction="sum"), logits_NV


def errors(found, exact):
    """Return how far values are from the exact ones, relative to these."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("chunk_size", [5, 16, 70, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_both_gradients_are_as_true_as_those_of_plain_cross_entropy(dtype, chunk_size, soft_cap):
    hidden, weight, targets = draw(dtype)
    exact, _ = plain(hidden.double(), weight.double(), targets, soft_cap)
    exact_gradients = torch.autograd.grad(exact * SCALE, (hidden, weight))
    exact_gradients = [exact.detach()[None], *(value.double() for value in exact_gradients)]
    stock, _ = plain(hidden, weight, targets, soft_cap)
    stock_gradients = torch.autograd.grad(stock * SCALE, (hidden, weight))
    scores = score_in_chunks(hidden, weight, targets, chunk_size=chunk_size, soft_cap=soft_cap)
    loss = -scores.log_prob_sum
    gradients = torch.autograd.grad(loss * SCALE, (hidden, weight))
    assert loss.dtype is torch.float32
    assert [value.dtype for value in gradients] == [dtype, dtype]
    allowed = errors([stock.detach()[None], *stock_gradients], exact_gradients)
    for own, theirs in zip(errors([loss.detach()[None], *gradients], exact_gradients), allowed, strict=True):
        assert own <= max(1.5 * theirs, 1e-6)
    if dtype is torch.float32:
        for own, theirs in zip(gradients, stock_gradients, strict=True):
            assert torch.allclose(own, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_entropy_and_hits_are_those_of_the_logits(soft_cap):
    hidden, weight, targets = draw(torch.float32)
    with torch.no_grad():
        _, logits_NV = plain(hidden, weight, targets, soft_cap)
        targets[:20] = logits_NV[:20].argmax(dim=1)
        hidden[20], targets[20], targets[21] = weight[3] * 5, 3, 4
        hidden[21] = weight[3] * 5  # words 3 and 4 tie for the first place, which only the first one takes
        _, logits_NV = plain(hidden, weight, targets, soft_cap)
    scores = score_in_chunks(hidden, weight, targets, chunk_size=16, soft_cap=soft_cap)
    probs_NV = logits_NV.double().softmax(dim=1)
    entropy_N = -(probs_NV * probs_NV.clamp(min=1e-300).log()).sum(dim=1)
    assert torch.allclose(scores.entropy.double(), entropy_N, atol=1e-4)
    assert scores.is_top1.tolist() == (logits_NV.argmax(dim=1) == targets).tolist()
    assert scores.is_top1[20]
    assert not scores.is_top1[21]


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, targets = draw(torch.float32)
    frozen = score_in_chunks(hidden, weight.detach(), targets, chunk_size=16)
    (-frozen.log_prob_sum).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not score_in_chunks(hidden, weight, targets, chunk_size=16).log_prob_sum.requires_grad
    head_alone = score_in_chunks(hidden.detach(), weight, targets, chunk_size=16)
    (-head_alone.log_prob_sum).backward()
    assert weight.grad is not None


def test_a_batch_without_a_learned_token_gives_a_zero_that_can_be_differentiated():
    hidden, weight, targets = draw(torch.float32)
    scores = score_in_chunks(hidden[:0], weight, targets[:0], chunk_size=16)
    scores.log_prob_sum.backward()
    assert scores.log_prob_sum.item() == 0
    assert hidden.grad.abs().sum() == 0
    assert weight.grad.abs().sum() == 0


def test_gradients_are_taken_once():
    hidden, weight, targets = draw(torch.float32)
    loss = score_in_chunks(hidden, weight, targets, chunk_size=16).log_prob_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"^the gradients of this loss have been taken already"):
        loss.backward()


def test_autocast_computes_in_its_own_format_and_gives_masters_fp32_gradients():
    hidden, weight, targets = draw(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = score_in_chunks(hidden, weight, targets, chunk_size=16)
    gradients = torch.autograd.grad(-found.log_prob_sum, (hidden, weight))
    assert [value.dtype for value in gradients] == [torch.float32, torch.float32]
    rounded = [value.detach().bfloat16() for value in (hidden, weight)]
    assert found.log_prob_sum.item() == pytest.approx(
        score_in_chunks(*rounded, targets, chunk_size=16).log_prob_sum.item(), rel=1e-6
    )


def test_fp16_gradients_of_unlikely_words_do_not_vanish():
    """A probability of 1 in 256,000 is below what fp16 holds exactly."""
    words = 200_000
    hidden = torch.full((4, 8), 1e-3, dtype=torch.float16, requires_grad=True)
    weight = torch.ones(words, 8, dtype=torch.float16)
    weight[0] = -1
    targets = torch.zeros(4, dtype=torch.int64)
    (-score_in_chunks(hidden, weight, targets, chunk_size=2).log_prob_sum).backward()
    assert torch.allclose(hidden.grad, torch.full_like(hidden.grad, 2.0), rtol=2e-3)


@pytest.mark.parametrize("method", ["trl", "torch"])
def test_the_other_heads_compute_the_same(method):
    hidden, weight, targets = draw(torch.float32)
    own = LossHead(LossHeadMethod.chunked, 16).score(hidden, weight, targets)
    other = LossHead(LossHeadMethod(method)).score(hidden, weight, targets)
    assert other.log_prob_sum.item() == pytest.approx(own.log_prob_sum.item(), rel=1e-6)
    expected = torch.autograd.grad(own.log_prob_sum, (hidden, weight))
    for one, two in zip(torch.autograd.grad(other.log_prob_sum, (hidden, weight)), expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
