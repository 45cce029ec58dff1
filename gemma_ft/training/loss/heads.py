"""The loss heads there are, behind one signature: ours, TRL's and torch's."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from gemma_ft.config.trainer import LossHeadMethod
from gemma_ft.training.loss.chunked import Scores, score_in_chunks

_TRLS_WORDS = 32768
"""Words of a tile of TRL's head, as its trainer calls it."""


@dataclass(frozen=True, slots=True)
class LossHead:
    """What scores the learned tokens of a micro-batch."""

    method: LossHeadMethod
    """Never `auto`."""
    chunk_size: int = 0
    """Tokens whose logits exist at one time; of `chunked` alone."""

    @property
    def untold(self) -> tuple[str, ...]:
        """TRL's metrics that the head has no figures for."""
        return ("entropy", "mean_token_accuracy") if self.method is LossHeadMethod.torch else ()

    def score(
        self,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        targets_N: torch.Tensor,
        soft_cap: float | None = None,
    ) -> Scores:
        """Score the tokens that came after hidden states; see `score_in_chunks`."""
        match self.method:
            case LossHeadMethod.trl:
                return _score_by_trl(hidden_NH, weight_VH, targets_N, soft_cap)
            case LossHeadMethod.torch:
                return _score_by_torch(hidden_NH, weight_VH, targets_N)
            case _:
                return score_in_chunks(
                    hidden_NH, weight_VH, targets_N, chunk_size=self.chunk_size, soft_cap=soft_cap
                )


def _score_by_trl(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor, soft_cap: float | None
) -> Scores:
    """Score with the kernel that TRL's trainer puts behind its fused head: Triton's on a GPU."""
    from trl.kernels import ChunkedLogProbFunction

    temperature, scale, outputs = 1.0, 1.0, ("log_probs", "entropy", "is_top1")
    log_probs_N, entropy_N, _, _, is_top1_N = ChunkedLogProbFunction.apply(
        *(hidden_NH, weight_VH, None, targets_N, temperature, _TRLS_WORDS, soft_cap, scale, outputs)
    )
    return Scores(log_probs_N.sum(), entropy_N, is_top1_N)


def _score_by_torch(hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor) -> Scores:
    """Score with torch's own fused loss, which tells the sum alone, and knows no soft cap."""
    loss = functional.linear_cross_entropy(hidden_NH, weight_VH, targets_N, reduction="sum")
    nothing = loss.new_zeros(1).detach()
    return Scores(-loss.float(), nothing, nothing)
