"""How fast and how true a loss head is on this device, with this model's head."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gemma_ft.training.loss.heads import LossHead

_FEWEST_REPEATS, _MOST_REPEATS, _ENOUGH_SECONDS = 2, 4, 0.2
"""Timed runs, of which the fastest counts: what disturbs only ever slows down."""
_CHECKED_TOKENS = 64
_WORDS_AT_ONCE = 16384

_MORE_THAN_PLAIN = 4.0
_ROUNDING = 1e-5
"""A head may be this many times as far from the exact values as the plain computation, and so much beside."""


class Bench:
    """A model's head on its device, and random hidden states to try it with."""

    def __init__(
        self, weight_VH: torch.Tensor, *, trains: bool, dtype: torch.dtype, soft_cap: float | None
    ) -> None:
        """Lay out a head.

        Args:
            weight_VH: Its weight, which is left as it is.
            trains: Whether its gradient is wanted.
            dtype: Number format that computes.
            soft_cap: Of the logits, or None.
        """
        self.weight_VH = weight_VH.detach().requires_grad_(trains)
        self.dtype, self.soft_cap = dtype, soft_cap

    def time(self, head: LossHead, tokens: int) -> float:
        """Return the seconds a token takes, forward and backward, when this many are scored at once."""
        hidden_NH, targets_N = self._draw(tokens)
        seconds: list[float] = []
        with self._computing():
            while not _suffice(seconds):
                self._wait()
                begin = time.perf_counter()
                scores = head.score(hidden_NH, self.weight_VH, targets_N, self.soft_cap)
                self._clear(hidden_NH, scores.log_prob_sum)
                self._wait()
                seconds.append(time.perf_counter() - begin)
        return min(seconds) / tokens

    def find_fault(self, head: LossHead) -> str:
        """Say how a head's loss or gradient is wrong; empty where it is as true as the plain computation."""
        hidden_NH, targets_N = self._draw(_CHECKED_TOKENS)
        loss, grad_NH = self._exact(hidden_NH.detach(), targets_N)
        errors = {}
        for name in ("plain", "head"):
            with self._computing():
                if name == "head":
                    total = -head.score(hidden_NH, self.weight_VH, targets_N, self.soft_cap).log_prob_sum
                else:
                    total = self._plain(hidden_NH, targets_N)
                found_NH = torch.autograd.grad(total, hidden_NH)[0].float()
            errors[name] = (
                abs(float(total.detach()) - float(loss)) / float(loss),
                float((found_NH - grad_NH).norm() / grad_NH.norm()),
            )
        for what, plain, own in zip(("loss", "gradient"), errors["plain"], errors["head"], strict=True):
            if not own <= _MORE_THAN_PLAIN * plain + _ROUNDING:
                return f"its {what} is {own:.2g} off (relative; the plain computation {plain:.2g})"
        return ""

    def _draw(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        words, width = self.weight_VH.shape
        source = torch.Generator().manual_seed(0)  # the run's own random state stays as it is
        hidden_NH = torch.randn(tokens, width, generator=source).to(self.weight_VH.device, self.dtype)
        targets_N = torch.randint(words, (tokens,), generator=source).to(self.weight_VH.device)
        return hidden_NH.requires_grad_(), targets_N

    def _plain(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        logits_NV = torch.nn.functional.linear(hidden_NH, self.weight_VH.detach()).float()
        if self.soft_cap is not None:
            logits_NV = torch.tanh(logits_NV / self.soft_cap) * self.soft_cap
        return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")

    def _exact(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the summed loss and its gradient in fp64, some words at a time.

        d loss / d hidden = (p - [word = target]) W, times 1 - tanh^2 under a soft cap.
        """
        hidden_NH = hidden_NH.double()
        parts = torch.split(self.weight_VH.detach().to(self.dtype), _WORDS_AT_ONCE)
        logits_NV = torch.cat([hidden_NH @ part.double().T for part in parts], dim=1)
        slope_NV = torch.ones_like(logits_NV)
        if self.soft_cap is not None:
            slope_NV -= torch.tanh(logits_NV / self.soft_cap) ** 2
            logits_NV = torch.tanh(logits_NV / self.soft_cap) * self.soft_cap
        loss = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
        grad_NV = logits_NV.softmax(dim=1)
        grad_NV.scatter_add_(1, targets_N[:, None], -torch.ones_like(grad_NV[:, :1]))
        grads = torch.split(grad_NV.mul_(slope_NV), _WORDS_AT_ONCE, dim=1)
        grad_NH = torch.zeros_like(hidden_NH)
        for grad_NW, part in zip(grads, parts, strict=True):
            grad_NH += grad_NW @ part.double()
        return loss, grad_NH.float()

    def _clear(self, hidden_NH: torch.Tensor, log_prob_sum: torch.Tensor) -> None:
        wanted = [value for value in (hidden_NH, self.weight_VH) if value.requires_grad]
        torch.autograd.grad(log_prob_sum, wanted)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        kind = self.weight_VH.device.type
        with torch.enable_grad(), torch.autocast(kind, self.dtype, enabled=self.dtype is not torch.float32):
            yield

    def _wait(self) -> None:
        if self.weight_VH.is_cuda:
            torch.cuda.synchronize(self.weight_VH.device)


def _suffice(seconds: list[float]) -> bool:
    few = len(seconds) < _FEWEST_REPEATS
    return not few and (sum(seconds) > _ENOUGH_SECONDS or len(seconds) == _MOST_REPEATS)
