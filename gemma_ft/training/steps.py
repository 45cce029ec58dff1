"""How many steps a run takes: as it was begun, by its newest checkpoint, and as it is configured now."""

import json
import math
from dataclasses import dataclass
from typing import Any

from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.runs import RunFolder

_CONSTANT = "constant"
_CONSTANT_WITH_WARMUP = "constant_with_warmup"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a run's newest checkpoint stands."""

    step: int
    total: int
    """Steps that its schedule was made for."""
    steps_per_epoch: int


def read_standing(run: RunFolder) -> Standing | None:
    """Read where the newest checkpoint stands, or None where there is none that can be read."""
    for step in reversed(run.steps()):
        try:
            state = json.loads((run.step_folder(step) / "trainer_state.json").read_text(encoding="utf-8"))
            return _standing(state)
        except (OSError, ValueError, TypeError, KeyError, ArithmeticError):
            continue
    return None


def _standing(state: dict[str, Any]) -> Standing:
    step, total, epoch = int(state["global_step"]), int(state["max_steps"]), float(state["epoch"])
    return Standing(step=step, total=total, steps_per_epoch=_steps_per_epoch(step, epoch))


def _steps_per_epoch(step: int, epoch: float) -> int:
    """Find the optimizer steps of an epoch from what a checkpoint says.

    transformers counts an epoch by micro-batches, and the last step of one may have fewer of them. So the
    quotient lies above the number of steps less one, and not above the number itself.
    """
    return math.ceil(step / epoch - 1e-6)


def planned_steps(trainer: TrainerConfig, standing: Standing) -> int:
    """Count the steps that a configuration asks for, on the rows of a run, as transformers does."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    return math.ceil(trainer.num_train_epochs * standing.steps_per_epoch)


def is_constant(trainer: TrainerConfig) -> bool:
    """Tell whether the learning rate of a step does not depend on how many steps there are."""
    warms_up_by_share = 0 < trainer.warmup_steps < 1
    return trainer.lr_scheduler_type == _CONSTANT or (
        trainer.lr_scheduler_type == _CONSTANT_WITH_WARMUP and not warms_up_by_share
    )
