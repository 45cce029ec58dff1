"""Cross-entropy of hidden states, some tokens at a time: the logits of no more of them exist at once.

Each chunk's gradient is formed while its logits are at hand, in the forward pass: nothing is computed twice,
and nothing of the size of the vocabulary is kept. Only the sum over tokens leaves this file, so that the
gradient which comes back is one number, by which what was formed is scaled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from gemma_ft.modeling.matmul import round_up

_BLOCK_BYTES = {"cpu": 8 * 2**20}
"""fp32 probabilities that are worked on at once: on a CPU what its caches hold."""
_BLOCK_BYTES_ON_GPU = 256 * 2**20

_SCALE_OF_FP16 = 2.0**10
"""fp16 cannot hold a probability of 1 in 256,000; times this it can, and a power of two rounds nothing."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the head says of N scored tokens."""

    log_prob_sum: torch.Tensor
    """Summed log-probability of the tokens that came, fp32; the gradient flows through it."""
    entropy: torch.Tensor
    """Of the predicted distributions (N), in nats, fp32."""
    is_top1: torch.Tensor
    """(N) Whether the token that came was the likeliest; the first of several alike counts."""


def score_in_chunks(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    chunk_size: int,
    soft_cap: float | None = None,
) -> Scores:
    """Score the tokens that came after hidden states.

    The products are computed in the number format of the hidden states, or in autocast's; all else in fp32.

    Args:
        hidden_NH: Of the positions that are learned from.
        weight_VH: The head's.
        targets_N: The words that came.
        chunk_size: Tokens whose logits exist at one time.
        soft_cap: `c` of Gemma 2's logits `c * tanh(logits / c)`; None leaves them as they are.
    """
    needs = (False, False)
    if torch.is_grad_enabled():
        needs = (hidden_NH.requires_grad, weight_VH.requires_grad)
    score: Callable[..., tuple[torch.Tensor, ...]] = _ChunkedCrossEntropy.apply
    return Scores(*score(hidden_NH, weight_VH, targets_N, max(chunk_size, 1), soft_cap, needs))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of log-probabilities, with the gradients formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        targets_N: torch.Tensor,
        chunk_size: int,
        soft_cap: float | None,
        needs: tuple[bool, bool],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Score the chunks one after another; see `score_in_chunks`."""
        kind = hidden_NH.device.type
        computes_in = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_NH.dtype
        with torch.autocast(kind, enabled=False):
            work = _Work(hidden_NH.to(computes_in), weight_VH.to(computes_in), soft_cap, needs)
            for start in range(0, len(targets_N), chunk_size):
                work.take(start, targets_N[start : start + chunk_size])
        ctx.mark_non_differentiable(work.entropy_N, work.is_top1_N)
        ctx.set_materialize_grads(False)
        ctx.gradients = (work.hidden_grad_NH, work.weight_grad_VH)
        ctx.formats = (hidden_NH.dtype, weight_VH.dtype)
        ctx.scale = work.scale
        return work.log_probs_N.sum(), work.entropy_N, work.is_top1_N

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass has formed."""
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of this loss have been taken already: it is scored anew each time"
            )
        (hidden_grad_NH, weight_grad_VH), ctx.gradients = ctx.gradients, None
        hidden_format, weight_format = ctx.formats
        factor = grad_sum.float() / ctx.scale
        if hidden_grad_NH is not None:
            hidden_grad_NH = (hidden_grad_NH.float() * factor).to(hidden_format)
        if weight_grad_VH is not None:
            weight_grad_VH = weight_grad_VH.mul_(factor).to(weight_format)
        return hidden_grad_NH, weight_grad_VH, None, None, None, None


class _Work:
    """The chunks' common buffers, and what has been found so far."""

    def __init__(
        self,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        soft_cap: float | None,
        needs: tuple[bool, bool],
    ) -> None:
        tokens, device = len(hidden_NH), hidden_NH.device
        self.hidden_NH, self.weight_VH, self.soft_cap = hidden_NH, weight_VH, soft_cap
        self.scale = _SCALE_OF_FP16 if hidden_NH.dtype is torch.float16 else 1.0
        self.log_probs_N = torch.zeros(tokens, device=device)
        self.entropy_N = torch.zeros(tokens, device=device)
        self.is_top1_N = torch.zeros(tokens, device=device, dtype=torch.bool)
        self.hidden_grad_NH = torch.empty_like(hidden_NH) if needs[0] else None
        self.weight_grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needs[1] else None
        self._logits: torch.Tensor | None = None
        self._blocks: dict[str, torch.Tensor] = {}

    def take(self, start: int, targets_C: torch.Tensor) -> None:
        """Score a chunk, and add what it gives to the gradients."""
        tokens, words = len(targets_C), len(self.weight_VH)
        padding = round_up(tokens) - tokens  # rows of zeros, which add nothing: products have few shapes so
        hidden_CH = functional.pad(self.hidden_NH[start : start + tokens], (0, 0, 0, padding))
        if self._logits is None:
            self._logits = hidden_CH.new_empty(len(hidden_CH), words)
        logits_CV = torch.mm(hidden_CH, self.weight_VH.T, out=self._logits[: len(hidden_CH)])
        wanted = self.hidden_grad_NH is not None or self.weight_grad_VH is not None
        room = _BLOCK_BYTES.get(logits_CV.device.type, _BLOCK_BYTES_ON_GPU)
        rows = max(room // (4 * words), 1)
        for first in range(0, tokens, rows):
            block = slice(first, min(first + rows, tokens))
            found = slice(start + block.start, start + block.stop)
            grad_RV = self._score(logits_CV[block], targets_C[block], found, wanted=wanted)
            if grad_RV is not None:
                logits_CV[block] = grad_RV
        if self.hidden_grad_NH is not None:
            self.hidden_grad_NH[start : start + tokens] = torch.mm(logits_CV, self.weight_VH)[:tokens]
        if self.weight_grad_VH is not None:
            _add_product(self.weight_grad_VH, logits_CV, hidden_CH)

    def _score(
        self, logits_RV: torch.Tensor, targets_R: torch.Tensor, found: slice, *, wanted: bool
    ) -> torch.Tensor | None:
        """Note what rows of logits say, and use them up; return the gradient of what they say, if wanted.

        d log p(target) / d logits = [word = target] - p(word), times 1 - tanh^2 under a soft cap.
        """
        slope_RV = None
        if logits_RV.dtype is not torch.float32:
            logits_RV = self._block("logits", logits_RV).copy_(logits_RV)
        if self.soft_cap is not None:
            logits_RV.div_(self.soft_cap).tanh_()
            if wanted:
                slope_RV = torch.square(logits_RV, out=self._block("slope", logits_RV)).neg_().add_(1)
            logits_RV.mul_(self.soft_cap)
        said_R = logits_RV.gather(1, targets_R[:, None]).squeeze(1)
        best_R, self.is_top1_N[found] = _find_best(logits_RV, targets_R, said_R)
        probs_RV = torch.softmax(logits_RV, dim=1, out=self._block("probs", logits_RV))
        log_sum_R = best_R - probs_RV.amax(dim=1).log()
        self.log_probs_N[found] = said_R - log_sum_R
        self.entropy_N[found] = log_sum_R - logits_RV.mul_(probs_RV).sum(dim=1)
        if not wanted:
            return None
        grad_RV = probs_RV.neg_()
        grad_RV.scatter_add_(1, targets_R[:, None], torch.ones_like(best_R)[:, None])
        if slope_RV is not None:
            grad_RV.mul_(slope_RV)
        return grad_RV.mul_(self.scale) if self.scale != 1.0 else grad_RV

    def _block(self, use: str, rows: torch.Tensor) -> torch.Tensor:
        """Return fp32 memory for as many rows, the same each time: the system is slow to give new one."""
        if use not in self._blocks:
            self._blocks[use] = torch.empty_like(rows, dtype=torch.float32)
        return self._blocks[use][: len(rows)]


def _find_best(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, said_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest logits, and whether they are `said_R`, those of the targets, none before as high.

    On a CPU the place of the highest takes ten times as long to find as its value.
    """
    if logits_RV.device.type != "cpu":
        best_R, words_R = logits_RV.max(dim=1)
        return best_R, words_R == targets_R
    best_R = logits_RV.amax(dim=1)
    is_top1_R = said_R == best_R
    for row in is_top1_R.nonzero().flatten().tolist():
        before_W = logits_RV[row, : targets_R[row]]
        is_top1_R[row] = not len(before_W) or before_W.amax() < best_R[row]
    return best_R, is_top1_R


def _add_product(total_VH: torch.Tensor, grad_CV: torch.Tensor, hidden_CH: torch.Tensor) -> None:
    """Add a chunk's part of the head's gradient, summed in fp32 whatever computes it."""
    if grad_CV.dtype is torch.float32:
        total_VH.addmm_(grad_CV.T, hidden_CH)
    elif grad_CV.is_cuda:
        torch.addmm(total_VH, grad_CV.T, hidden_CH, out_dtype=torch.float32, out=total_VH)
    else:
        hidden_CH = hidden_CH.float()
        words = max(_BLOCK_BYTES["cpu"] // (4 * len(grad_CV)), 1)
        for part_VH, part_CV in zip(
            torch.split(total_VH, words), torch.split(grad_CV, words, dim=1), strict=True
        ):
            part_VH.addmm_(part_CV.T.float(), hidden_CH)
