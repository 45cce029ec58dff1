"""What a run takes: seconds and tokens of its steps, the memory of its parts as torch's allocator tells."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback


class EnoughMeasuredError(Exception):
    """Raised out of a run once enough of its steps are measured: the save at its end is of no interest."""


class Allocator:
    """torch's account of a device's memory, in bytes; zeros where there is none, on a CPU."""

    def __init__(self, device: str) -> None:
        """Look at a device: cuda or cpu."""
        self.counts = device == "cuda"
        self.reserved = 0
        """The most that torch has taken from the device."""

    def allocated(self) -> int:
        """Return what tensors hold now."""
        return int(torch.cuda.memory_allocated()) if self.counts else 0

    def take_peak(self) -> int:
        """Return the most that tensors held since the last call."""
        if not self.counts:
            return 0
        peak = int(torch.cuda.max_memory_allocated())
        self.reserved = max(self.reserved, int(torch.cuda.max_memory_reserved()))
        torch.cuda.reset_peak_memory_stats()
        return peak

    def wait(self) -> None:
        """Wait for the device."""
        if self.counts:
            torch.cuda.synchronize()


@dataclass(kw_only=True, slots=True)
class Step:
    """One optimizer step."""

    seconds: float
    tokens: int = 0
    loss: float | None = None
    skipped: bool = False
    scale: float | None = None


class Meter(TrainerCallback):  # type: ignore[misc]
    """Measure the steps of a run, and end it when there are enough.

    A step goes through forward (to the last norm), loss (to the gradient of what the norm gave), backward and
    optimizer; each has a peak of its own.
    """

    def __init__(
        self, allocator: Allocator, *, warm_up: int, steps: int, seconds: float | None, on_end: bool = True
    ) -> None:
        """Measure `steps` steps after `warm_up` others, or fewer if they take longer than `seconds`.

        Args:
            allocator: The account of memory.
            warm_up: Steps that are not measured.
            steps: Steps that are.
            seconds: After so many no further step is measured, but two are.
            on_end: Whether to end the run then.
        """
        self.allocator = allocator
        self.warm_up, self.wanted, self.limit, self.ends = warm_up, steps, seconds, on_end
        self.steps: list[Step] = []
        self.held: dict[str, int] = {"nothing": allocator.allocated()}
        """Bytes held after each stage of the building."""
        self.peaks: dict[str, int] = {}
        self.kept = self.gradients = self.loss_extra = 0
        self.trainer: Any = None
        self._phase = ""
        self._began, self._began_with, self._loss_began_with, self._tokens = 0.0, 0, 0, 0
        self._first_forward = True

    def attach(self, trainer: Any) -> None:
        """Measure this trainer."""
        self.trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        """Find the last norm, between the blocks and the loss."""
        self.held["trainer"] = self.allocator.allocated()
        (norm,) = (module for name, module in model.named_modules() if name.endswith("model.norm"))
        norm.register_forward_hook(self._after_blocks)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a step."""
        self.allocator.wait()
        self._began_with, self._first_forward = self.allocator.allocated(), True
        self._enter("forward")
        self._began = time.perf_counter()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """Begin the next micro-batch."""
        self._enter("forward")

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Know the gradients, which are all that a backward pass leaves."""
        self._enter("optimizer")
        self.gradients = max(self.gradients, self.allocator.allocated() - self._began_with)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End a step."""
        self.allocator.wait()
        step = Step(seconds=time.perf_counter() - self._began)
        self._enter("")
        self.held.setdefault("first step", self.allocator.allocated())
        scaler = self.trainer.accelerator.scaler
        if scaler is not None and scaler.is_enabled():
            step.scale = float(scaler.get_scale())
            step.skipped = bool(self.trainer.accelerator.optimizer_step_was_skipped)
        self.steps.append(step)

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        """Take the tokens and the loss of the step from what the trainer logs.

        Raises:
            EnoughMeasuredError: It was the last one.
        """
        if not logs or "loss" not in logs:
            return
        step, total = self.steps[-1], int(logs["num_tokens"])
        step.tokens, self._tokens, step.loss = total - self._tokens, total, float(logs["loss"])
        taken = [step.seconds for step in self.measured()]
        out_of_time = self.limit is not None and len(taken) >= 2 and sum(taken) > self.limit
        if self.ends and (len(taken) >= self.wanted or out_of_time):
            raise EnoughMeasuredError

    def measured(self) -> list[Step]:
        """Return the steps after the warm-up."""
        return self.steps[self.warm_up :]

    def _after_blocks(self, module: torch.nn.Module, inputs: Any, hidden: torch.Tensor) -> None:
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            return
        self._enter("loss")
        self._loss_began_with = self.allocator.allocated()
        if self._first_forward:
            self.kept = max(self.kept, self._loss_began_with - self._began_with)
            self._first_forward = False
        hidden.register_hook(self._after_loss)

    def _after_loss(self, gradient: torch.Tensor) -> None:
        peak = self._enter("backward")
        self.loss_extra = max(self.loss_extra, peak - self._loss_began_with)

    def _enter(self, phase: str) -> int:
        """Close the phase that was and open the next; return the peak of the one that was."""
        peak = self.allocator.take_peak()
        if self._phase:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), peak)
        self._phase = phase
        return peak


def _marked(meter: Meter, stage: str, build: Callable[..., Any]) -> Callable[..., Any]:
    def built(*args: Any, **kwargs: Any) -> Any:
        result = build(*args, **kwargs)
        meter.held[stage] = meter.allocator.allocated()
        return result

    return built


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Have the runs in here measured, at the places where a trainer is built."""
    from gemma_ft.training import build

    def build_trainer(*args: Any, **kwargs: Any) -> Any:
        trainer = whole(*args, **kwargs)
        meter.attach(trainer)
        return trainer

    whole = build.build_trainer
    with (
        patch.object(build, "load_model", _marked(meter, "model", build.load_model)),
        patch.object(build, "attach_adapter", _marked(meter, "adapters", build.attach_adapter)),
        patch.object(build, "build_trainer", build_trainer),
    ):
        yield
