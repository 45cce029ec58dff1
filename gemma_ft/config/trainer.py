"""The `trainer` section: optimisation, batches, length and rhythm.

Names are TRL's where a value passes 1:1.
"""

import difflib
import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from gemma_ft.config.extra import find_extra_problems
from gemma_ft.config.library_names import optimizer_names, scheduler_names

_POSITIVE = (
    "num_train_epochs",
    "max_length",
    "global_batch_size",
    "micro_batch_size",
    "loss_chunk_size",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "max_hours",
    "early_stopping_patience",
    "sample_tokens",
)
_NOT_NEGATIVE = ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha")


class LossHeadMethod(StrEnum):
    """What turns hidden states into the loss over the whole vocabulary."""

    auto = "auto"
    chunked = "chunked"
    trl = "trl"
    torch = "torch"


class CpuMatmul(StrEnum):
    """What multiplies fp32 matrices on a CPU."""

    auto = "auto"
    default = "default"
    onednn = "onednn"


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Supervised fine-tuning with TRL."""

    learning_rate: float = 2e-4
    """Peak rate; 2e-4 suits adapters, 2e-5 a full fine-tune."""
    optim: str = "adamw_torch"
    """Optimizer, in transformers' names (adamw_torch, paged_adamw_8bit, adafactor, ...)."""
    lr_scheduler_type: str = "cosine"
    """Schedule, in transformers' names (constant, linear, cosine, ...)."""
    warmup_steps: float = 0.03
    """Steps of warm-up; below 1 it is a share of all steps."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    neftune_noise_alpha: float | None = None
    """Noise on the embeddings while training (NEFTune); none switches it off."""
    num_train_epochs: float = 1.0
    """Passes over the data, unless max_steps is set."""
    max_steps: int = -1
    """Optimizer steps; -1 lets num_train_epochs decide."""
    global_batch_size: int = 16
    """Sequences an optimizer step, over all devices; accumulation is derived from it."""
    micro_batch_size: int = 1
    """Sequences a device holds at once."""
    max_length: int = 2048
    """Longest sequence in tokens; dataset.on_long_row says what becomes of longer rows."""
    packing: bool = False
    """Fill sequences with several whole rows that do not see each other."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory; none: unless they take 128 MiB at most."""
    loss_head: LossHeadMethod = LossHeadMethod.auto
    """What computes the loss: chunked (ours), trl, torch; auto measures once a run which is fastest here."""
    loss_chunk_size: int | None = None
    """Tokens whose logits exist at one time (chunked); none: measured once a run, kept in loss_head.json."""
    cpu_matmul: CpuMatmul = CpuMatmul.auto
    """What multiplies fp32 matrices on a CPU: default (torch's choice), onednn; auto measures once a run."""
    logging_steps: int = 10
    """Steps between two lines of progress."""
    eval_steps: int | None = None
    """Steps between two held-out evaluations; none: only before and after training."""
    save_steps: int = 100
    """Steps between two checkpoints."""
    save_total_limit: int | None = 2
    """Checkpoints kept; none keeps all."""
    max_hours: float | None = None
    """Stop after this many hours with a checkpoint, as SIGTERM would; the same line goes on."""
    load_best_model_at_end: bool = False
    """End with the checkpoint of the lowest held-out loss instead of the last one."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a lower held-out loss."""
    sample_prompt: str | None = None
    """Prompt answered before and after training."""
    sample_tokens: int = 32
    """Longest sample answer, in tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further SFTConfig arguments, passed as they are: +trainer.extra.adam_beta2=0.95."""

    @property
    def may_recompute(self) -> bool:
        """Whether activations are recomputed as far as is known before there are rows: unless told not to."""
        return self.gradient_checkpointing is not False

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = [
            f"trainer.{key}={value} must be above 0. Give a positive number, or leave it out for the default."
            for key in _POSITIVE
            if (value := getattr(self, key)) is not None and not 0 < value < math.inf
        ]
        if self.loss_chunk_size is not None and self.loss_head in (LossHeadMethod.trl, LossHeadMethod.torch):
            found.append(
                f"trainer.loss_chunk_size={self.loss_chunk_size} has no effect with "
                f"trainer.loss_head={self.loss_head}. Leave one of the two out."
            )
        found += [
            f"trainer.{key}={value} must not be negative. Give a finite number, 0 or more."
            for key in _NOT_NEGATIVE
            if (value := getattr(self, key)) is not None and not 0 <= value < math.inf
        ]
        names = frozenset(item.name for item in fields(self))
        return found + self._step_problems() + self._name_problems() + find_extra_problems(self.extra, names)

    def _name_problems(self) -> list[str]:
        found = []
        for key, known in (("optim", optimizer_names()), ("lr_scheduler_type", scheduler_names())):
            value = getattr(self, key)
            if known and value.strip() and value not in known:
                near = difflib.get_close_matches(value, known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(sorted(known))}."
                found.append(f"trainer.{key}={value} is no name that transformers knows. {hint}")
        return found

    def _step_problems(self) -> list[str]:
        found = []
        if self.max_steps == 0 or self.max_steps < -1:
            found.append(f"trainer.max_steps={self.max_steps} trains nothing. Give a positive number, or -1.")
        if 1 < self.warmup_steps < math.inf and self.warmup_steps != int(self.warmup_steps):
            found.append(
                f"trainer.warmup_steps={self.warmup_steps} is neither a share nor a number of steps. "
                "Give a share below 1, or a whole number."
            )
        if self.micro_batch_size > 0 and self.global_batch_size % self.micro_batch_size:
            found.append(
                f"trainer.global_batch_size={self.global_batch_size} is not divisible by "
                f"trainer.micro_batch_size={self.micro_batch_size}. Make it a multiple."
            )
        if self.load_best_model_at_end and self.eval_steps is None:
            found.append(
                "trainer.eval_steps=null leaves the best checkpoint unknown. "
                "Set trainer.eval_steps, e.g. to trainer.save_steps."
            )
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            found.append(
                f"trainer.early_stopping_patience={self.early_stopping_patience} would end with a model that "
                "is not the best one. Add trainer.load_best_model_at_end=true."
            )
        if self.load_best_model_at_end and self.eval_steps and self.save_steps != self.eval_steps:
            found.append(
                f"trainer.save_steps={self.save_steps} is not trainer.eval_steps={self.eval_steps}, so the "
                f"best model may have no checkpoint. Use trainer.save_steps={self.eval_steps}."
            )
        return found
