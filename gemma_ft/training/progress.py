"""What a run says while it trains: a line of progress, and metrics.jsonl."""

import logging
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from gemma_ft.runs import RunFolder
from gemma_ft.training.failures import NotFiniteError
from gemma_ft.training.guard import all_finite, weights_of
from gemma_ft.training.spikes import find_spike
from gemma_ft.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger("gemma_ft")

_GIB = 2**30


class Progress(TrainerCallback):  # type: ignore[misc]
    """Write metrics.jsonl, pass it on to the tracker and say where the run is."""

    def __init__(self, run: RunFolder, tracker: Tracker) -> None:
        """Start counting when training starts."""
        self.run = run
        self.tracker = tracker
        self._since = (time.monotonic(), 0, 0)
        """Clock, tokens and step at the start of what the speed is averaged over."""

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: Any
    ) -> None:
        """Start the clock."""
        self._since = (time.monotonic(), state.num_input_tokens_seen, state.global_step)

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, float] | None = None,
        model: "torch.nn.Module | None" = None,
        **_: Any,
    ) -> None:
        """Keep what TRL reports, and say it."""
        _check_finite(logs or {}, state.global_step, model)
        if not state.is_world_process_zero or not logs or "train_loss" in logs:
            return  # the summary at the end counts from the last start, not from the run's
        record: dict[str, Any] = {
            "step": state.global_step,
            **{key: _number(value) for key, value in logs.items()},
        }
        if "loss" in logs:
            record |= self._say_step(state, logs)
        elif "eval_loss" in logs:
            logger.info(
                "step %d/%d  held-out loss %.4f", state.global_step, state.max_steps, logs["eval_loss"]
            )
        self.run.append_metrics(record)
        self.tracker.log(record)

    def _say_step(self, state: "TrainerState", logs: dict[str, float]) -> dict[str, Any]:
        """Say how training goes; return what is measured here."""
        seconds, memory = time.monotonic() - self._since[0], peak_memory()
        speed = round((logs["num_tokens"] - self._since[1]) / max(seconds, 1e-9), 1)
        left = seconds / max(state.global_step - self._since[2], 1) * (state.max_steps - state.global_step)
        logger.info(
            "step %d/%d  loss %.4f  %s tokens/s  %s left  %.2f GiB",
            state.global_step,
            state.max_steps,
            logs["loss"],
            f"{speed:,.0f}",
            _clock(left),
            memory / _GIB,
        )
        measured = {"tokens_per_second": speed, "peak_memory_bytes": memory}
        spike = find_spike([log["loss"] for log in state.log_history if "loss" in log])
        if spike is None:
            return measured
        logger.warning(
            "step %d: the loss is %.1f times the median of those before it. Where it does not come down "
            "again, a lower trainer.learning_rate or trainer.max_grad_norm helps.",
            state.global_step,
            spike,
        )
        return {**measured, "loss_spike": round(spike, 2)}


def _check_finite(logs: dict[str, float], step: int, model: "torch.nn.Module | None") -> None:
    """Refuse to go on from a held-out loss that is no number; the guard looks at the others step by step."""
    loss = logs.get("eval_loss", 0.0)
    if not math.isfinite(loss):
        weights = model is not None and not all_finite(weights_of(model))
        raise NotFiniteError(f"the held-out loss is {loss:g}", step=step, weights=weights)


def peak_memory() -> int:
    """Return the most memory used so far, in bytes: the GPU's, or this process's without one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
