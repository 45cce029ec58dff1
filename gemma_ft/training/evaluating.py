"""Evaluation that leaves no trace in what is trained, and that a stop can cut short."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DefaultFlowCallback, TrainerControl

from gemma_ft import stopping
from gemma_ft.training.agreement import check_stop
from gemma_ft.training.batches import BatchTrainer

if TYPE_CHECKING:
    from transformers.trainer_utils import EvalLoopOutput


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random generators as they were: a DataLoader draws from them whenever it is read."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


class EvaluatingTrainer(BatchTrainer):
    """TRL's trainer with a held-out loss that is averaged over tokens."""

    _scored: list[torch.Tensor]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as TRL does.

        Raises:
            Interrupted: A process was asked to stop; in all of them, between two batches.
        """
        with stopping.deferred(), random_state_kept():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if not self.is_in_train:
            check_stop()
        return metrics

    def evaluation_is_due(self) -> bool:
        """Tell whether a stop came before the evaluation that belongs to the current step."""
        state = self.state
        asked = DefaultFlowCallback().on_step_end(self.args, state, TrainerControl()).should_evaluate
        done = any("eval_loss" in log and log["step"] == state.global_step for log in state.log_history)
        return bool(asked and not done)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> "EvalLoopOutput":
        """Evaluate as TRL does, with the loss averaged over tokens, however rows are batched or packed."""
        self._scored = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, tokens = self.accelerator.reduce(
            torch.stack(self._scored).sum(dim=0), reduction="sum"
        ).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(tokens, 1)
        # a duration, logged by the first evaluation of a process that has not trained
        output.metrics.pop(f"{metric_key_prefix}_model_preparation_time", None)
        return output

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Score a batch, and keep its summed loss and its number of learned tokens."""
        check_stop()
        # packed rows come one by one here
        self.mask_repeats(inputs["labels"], [inputs["labels"].shape[1]] * len(inputs["labels"]))
        tokens = (inputs["labels"][:, 1:] != -100).sum()
        result = super().prediction_step(model, inputs, *args, **kwargs)
        loss = result[0].double()
        self._scored.append(torch.stack([loss * tokens.to(loss.device), tokens.to(loss)]))
        return result
