"""A model that hands its hidden states to a loss head, and the trainer that has it do so."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from gemma_ft.training.loss.chunked import Scores
from gemma_ft.training.loss.heads import LossHead


class LossTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, whose loss comes from the head that the run has chosen, in training and evaluation.

    How the loss is divided by the tokens of a step, and what is logged of it, stay TRL's.
    """

    def __init__(self, *, loss_head: LossHead, **arguments: Any) -> None:
        """Build TRL's trainer.

        Args:
            loss_head: What scores.
            arguments: SFTTrainer's own.
        """
        self.loss_head = loss_head
        super().__init__(**arguments)
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        score: Callable[..., Scores] = LossHead.score
        if self.args.torch_compile:  # it would be compiled anew for each number of learned tokens
            score = torch.compiler.disable(score)  # type: ignore[no-untyped-call]
        install(model, score)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as TRL does, with the logits left to the head."""
        loss = super().compute_loss(model, {**inputs, "loss_head": self.loss_head}, *args, **kwargs)
        for name in self.loss_head.untold:
            del self._metrics["train" if self.model.training else "eval"][name]
        return loss


def install(model: torch.nn.Module, score: Callable[..., Scores] = LossHead.score) -> None:
    """Have `model(..., labels=labels, fused_lm_head=True, loss_head=head)` return the head's scores.

    It is what TRL's own patch of the model's forward returns for `fused_lm_head=True`, with the sum of the
    log-probabilities in the place of each one, and stands before it: a head needs hidden states, and calling
    the whole model is what DDP, FSDP, PEFT and autocast hook into. TRL 1.16 has no argument for a head.
    """
    forward_of_trl = model.forward
    soft_cap = getattr(model.config, "final_logit_softcapping", None)

    @functools.wraps(type(model).forward)  # generate() reads the signature
    def forward(self: Any, *args: Any, loss_head: LossHead | None = None, **kwargs: Any) -> Any:
        if loss_head is None or not kwargs.pop("fused_lm_head", False):
            return forward_of_trl(*args, **kwargs)
        labels_BL = kwargs.pop("labels")[:, 1:]
        hidden_BLH = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        known_BL = labels_BL != -100
        weight_VH = self.get_output_embeddings().weight  # looked up each time: PEFT and FSDP replace it
        scores = score(loss_head, hidden_BLH[known_BL], weight_VH, labels_BL[known_BL], soft_cap)
        return FusedCausalLMOutput(
            log_probs=scores.log_prob_sum,
            entropy=scores.entropy,
            is_top1=scores.is_top1,
            label_mask=known_BL,
        )

    model.forward = types.MethodType(forward, model)
