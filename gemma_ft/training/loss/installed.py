"""A model that hands its hidden states to a loss head, and the trainer that has it do so."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from gemma_ft.config.trainer import CpuMatmul
from gemma_ft.modeling.matmul import by_onednn, round_up
from gemma_ft.training.loss.chunked import Scores
from gemma_ft.training.loss.heads import LossHead


class LossTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, whose loss comes from the head that the run has chosen, in training and evaluation.

    How the loss is divided by the tokens of a step, and what is logged of it, stay TRL's.
    """

    def __init__(
        self, *, loss_head: LossHead, matmul: CpuMatmul = CpuMatmul.default, **arguments: Any
    ) -> None:
        """Build TRL's trainer.

        Args:
            loss_head: What scores.
            matmul: What multiplies fp32 matrices; never `auto`.
            arguments: SFTTrainer's own.
        """
        self.loss_head = loss_head
        self._by_onednn = matmul is CpuMatmul.onednn
        super().__init__(**arguments)
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        score: Callable[..., Scores] = LossHead.score
        if self.args.torch_compile:  # it would be compiled anew for each number of learned tokens
            score = torch.compiler.disable(score)  # type: ignore[no-untyped-call]
        install(model, score, few_lengths=self._by_onednn)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Learn from a micro-batch, its products computed by what the run has chosen."""
        with by_onednn(self._by_onednn):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Score a batch as a training step would."""
        with by_onednn(self._by_onednn):
            return super().prediction_step(*args, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as TRL does, with the logits left to the head."""
        loss = super().compute_loss(model, {**inputs, "loss_head": self.loss_head}, *args, **kwargs)
        for name in self.loss_head.untold:
            del self._metrics["train" if self.model.training else "eval"][name]
        return loss


def install(
    model: torch.nn.Module, score: Callable[..., Scores] = LossHead.score, *, few_lengths: bool = False
) -> None:
    """Have `model(..., labels=labels, fused_lm_head=True, loss_head=head)` return the head's scores.

    It is what TRL's own patch of the model's forward returns for `fused_lm_head=True`, with the sum of the
    log-probabilities in the place of each one, and stands before it: a head needs hidden states, and calling
    the whole model is what DDP, FSDP, PEFT and autocast hook into. TRL 1.16 has no argument for a head.

    Args:
        model: A causal LM, without adapters around it.
        score: `LossHead.score`, or something around it.
        few_lengths: Pad batches to one of few lengths, behind what they have and out of its sight.
    """
    forward_of_trl = model.forward
    soft_cap = getattr(model.config, "final_logit_softcapping", None)

    @functools.wraps(type(model).forward)  # generate() reads the signature
    def forward(self: Any, *args: Any, loss_head: LossHead | None = None, **kwargs: Any) -> Any:
        if loss_head is None or not kwargs.pop("fused_lm_head", False):
            return forward_of_trl(*args, **kwargs)
        labels_BL = kwargs.pop("labels")[:, 1:]
        last = labels_BL.shape[1]
        if few_lengths:
            kwargs = pad_inputs(kwargs)
        hidden_BLH = self.base_model(*args, **kwargs).last_hidden_state[:, :last]
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


def pad_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Pad a batch behind its tokens to one of few lengths; a causal model's other tokens do not see it.

    Packed rows, which know their ends by positions alone, have the last one go on.
    """
    length = inputs["input_ids"].shape[1]
    padding = (0, round_up(length) - length)
    padded = {
        name: functional.pad(inputs[name], padding)
        for name in ("input_ids", "attention_mask")
        if inputs.get(name) is not None
    }
    if (positions_BL := inputs.get("position_ids")) is not None:
        more = torch.arange(1, padding[1] + 1, device=positions_BL.device)
        padded["position_ids"] = torch.cat([positions_BL, positions_BL[:, -1:] + more], dim=1)
    return {**inputs, **padded}
