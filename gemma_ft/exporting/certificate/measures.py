"""How far two models are apart, from their last hidden states, a block of the vocabulary at a time.

Shape suffixes: T tokens, D width, V words of a block. Sums over blocks are in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemma_ft.exporting.certificate.streaming import RowLayer

_NEAR = 1e-2  # nats; beyond it the plain formula is exact enough, and the other one may overflow


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answer to the rows, up to its head."""

    head: RowLayer
    states: torch.Tensor
    """Shape (T, D)."""
    softcap: float | None
    """What bounds the logits, as Gemma 2 does."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one model is from another, over all tokens."""

    kl_mean: float
    """Kullback-Leibler divergence of the next token's distribution, in nats a token."""
    kl_max: float
    logit_difference_mean: float
    logit_difference_max: float
    same_likeliest_token: float
    """Share of tokens after which both find the same one likeliest."""


class SideTotals:
    """What is known of one model's distributions after some blocks of the vocabulary."""

    def __init__(self, targets_T: torch.Tensor) -> None:
        count = len(targets_T)
        self._targets_T = targets_T
        self.mass = torch.zeros(count, dtype=torch.float64)
        """Sum of the words' weights, shape (T,)."""
        self.target_logits = torch.full((count,), torch.nan)
        self.best_logits = torch.full((count,), -torch.inf)
        self.best = torch.full((count,), -1)

    def add(self, first: int, logits_TV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the logits of the words from `first` on.

        Returns:
            The words' weights (their probabilities, up to a factor for each token), and the factor by which
            earlier sums of such weights shrink.
        """
        highest_T, places_T = logits_TV.max(dim=1)
        better = highest_T > self.best_logits
        shrink_T = torch.exp(self.best_logits - torch.maximum(highest_T, self.best_logits)).double()
        self.best[better] = places_T[better] + first
        self.best_logits[better] = highest_T[better]
        inside = (self._targets_T >= first) & (self._targets_T < first + logits_TV.shape[1])
        picked = logits_TV[inside].gather(1, (self._targets_T[inside] - first)[:, None])
        self.target_logits[inside] = picked[:, 0]
        weights_TV = torch.exp(logits_TV - self.best_logits[:, None])
        self.mass = self.mass * shrink_T + weights_TV.sum(dim=1)
        return weights_TV, shrink_T

    @property
    def normalizer(self) -> torch.Tensor:
        """Return the logarithm of the sum of the exponentials of the logits, shape (T,)."""
        return self.best_logits.double() + self.mass.log()

    def loss(self, learned_T: torch.Tensor) -> float:
        """Return the mean cross-entropy of the learned tokens, in nats."""
        return float((self.normalizer - self.target_logits)[learned_T].mean())


class PairTotals:
    """What is known of the distance between two models after some blocks of the vocabulary."""

    def __init__(self, count: int) -> None:
        self._gap_T = torch.zeros(count, dtype=torch.float64)
        self._rest_T = torch.zeros(count, dtype=torch.float64)
        self._sum_T = torch.zeros(count, dtype=torch.float64)
        self._max = 0.0
        self._words = 0

    def add(self, weights_TV: torch.Tensor, shrink_T: torch.Tensor, gaps_TV: torch.Tensor) -> None:
        """Take in the differences of the logits, with the first model's weights of the words."""
        self._gap_T = self._gap_T * shrink_T + torch.linalg.vecdot(weights_TV, gaps_TV)
        rest_TV = torch.expm1(-gaps_TV).add_(gaps_TV)
        self._rest_T = self._rest_T * shrink_T + torch.linalg.vecdot(weights_TV, rest_TV)
        sizes_TV = gaps_TV.abs()
        self._sum_T += sizes_TV.sum(dim=1)
        self._max = max(self._max, float(sizes_TV.max()))
        self._words += gaps_TV.shape[1]

    def difference(self, one: SideTotals, other: SideTotals) -> Difference:
        """Return the figures once all blocks are in."""
        kl_T = self._divergence(one, other)
        return Difference(
            kl_mean=float(kl_T.mean()),
            kl_max=float(kl_T.max()),
            logit_difference_mean=float(self._sum_T.mean() / self._words),
            logit_difference_max=self._max,
            same_likeliest_token=float((one.best == other.best).double().mean()),
        )

    def _divergence(self, one: SideTotals, other: SideTotals) -> torch.Tensor:
        """Return KL(p || q) of each token, from d, the difference of the logits under p.

        log p - log q = d - (log Z_p - log Z_q), so KL = E[d] - (log Z_p - log Z_q). For near models that is a
        small difference of rounded numbers; with Z_q = Z_p E[exp(-d)] it becomes
        E[d] + log(1 + E[exp(-d) - 1 + d] - E[d]), where an error in E[d] cancels.
        """
        gap_T, rest_T = self._gap_T / one.mass, self._rest_T / one.mass
        near_T = gap_T + torch.log1p(rest_T - gap_T)
        far_T = gap_T - (one.normalizer - other.normalizer)
        return torch.where(far_T < _NEAR, near_T, far_T).clamp(min=0)


def measure(
    sides: Sequence[Side], pairs: Sequence[tuple[int, int]], targets_T: torch.Tensor
) -> tuple[list[SideTotals], list[Difference]]:
    """Compare models in one pass over the vocabulary.

    Args:
        sides: The models, with the same vocabulary.
        pairs: Which to compare, by their places in `sides`; the divergence is taken from the first.
        targets_T: The next token after each.
    """
    totals = [SideTotals(targets_T) for _ in sides]
    distances = [PairTotals(len(targets_T)) for _ in pairs]
    blocks = zip(*(side.head.parts(side.states) for side in sides), strict=True)
    for block in blocks:
        first = block[0][0]
        logits = [cap(part, side.softcap).float() for side, (_, _, part) in zip(sides, block, strict=True)]
        weighed = [total.add(first, part) for total, part in zip(totals, logits, strict=True)]
        for distance, (one, other) in zip(distances, pairs, strict=True):
            distance.add(*weighed[one], logits[one] - logits[other])
    found = [
        distance.difference(totals[one], totals[other])
        for distance, (one, other) in zip(distances, pairs, strict=True)
    ]
    return totals, found


def cap(logits_TV: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Bound logits as the model's own `forward` does after its head."""
    return logits_TV if softcap is None else torch.tanh(logits_TV / softcap) * softcap
