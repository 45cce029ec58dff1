"""What an optimizer and a schedule need beside their names, in transformers' words."""

import re
from collections.abc import Mapping
from typing import Any

from gemma_ft.config.extra import find_unknown_keys, say_entry
from gemma_ft.config.sft_arguments import NEEDS
from gemma_ft.config.trainer import TrainerConfig

_OPTIM_ARGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"sgd", ("momentum", "dampening", "nesterov")),
    (r"adagrad", ("lr_decay", "eps")),
    (r"rmsprop", ("momentum", "alpha", "eps", "centered")),
    (r"(paged_)?ademamix.*", ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")),
    (
        r"adamw_anyprecision",
        ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
    ),
    (r"galore_.*", ("rank", "update_proj_gap", "scale", "proj_type")),
    (r"apollo_.*", ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type")),
    (r"grokadamw", ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping")),
    (r"adamw_torch_[48]bit", ("bf16_stochastic_round",)),
    (r"schedule_free_.*", ("weight_lr_power", "r")),
    (r"stable_adamw", ("max_lr",)),
)
"""Optimizers, and what transformers reads of optim_args for them; all else it ignores or misreads."""

_WITHOUT_ADAM = re.compile(r"sgd|adagrad|rmsprop.*|adafactor|galore_.*|grokadamw|schedule_free_sgd")
"""Optimizers that do not read Adam's betas and epsilon."""
_IN_BACKWARD = re.compile(r"lomo|adalomo|.*_layerwise")
BY_HELD_OUT_LOSS = ("reduce_lr_on_plateau", "greedy")
"""Schedules whose rates follow what an evaluation finds."""


def optim_args_of(optim: str) -> tuple[str, ...]:
    """Name the keys of optim_args that an optimizer reads."""
    return next((keys for pattern, keys in _OPTIM_ARGS if re.fullmatch(pattern, optim)), ())


def find_optimizer_problems(trainer: TrainerConfig) -> list[str]:
    """List what cannot work together with the optimizer or the schedule."""
    problems = _unread_problems(trainer)
    optim, schedule = trainer.optim, trainer.lr_scheduler_type
    if _IN_BACKWARD.fullmatch(optim):
        problems.append(
            f"trainer.optim={optim} changes weights while gradients are computed, so no step can be checked "
            "before it is taken. Use adamw_8bit or adafactor to save memory."
        )
    if schedule in BY_HELD_OUT_LOSS and trainer.eval_steps is None:
        problems.append(
            f"trainer.lr_scheduler_type={schedule} follows the held-out loss, which is not asked for while "
            "training. Set trainer.eval_steps."
        )
    return problems + _argument_problems(optim, trainer.extra) + _target_problems(optim, trainer.extra)


def _unread_problems(trainer: TrainerConfig) -> list[str]:
    """List further arguments that nothing would read, since another one is missing."""
    problems = []
    for name, (needed, how) in NEEDS.items():
        given = trainer.extra.get(needed) or getattr(trainer, needed, None)
        left_open = needed == "gradient_checkpointing" and given is None  # its own arguments decide it
        if name in trainer.extra and not given and not left_open:
            problems.append(f"trainer.extra.{name} is read by nothing here. Add {how}, or take it out.")
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if name in trainer.extra and _WITHOUT_ADAM.fullmatch(trainer.optim):
            problems.append(
                f"{say_entry(f'trainer.extra.{name}', trainer.extra[name])} is nothing that "
                f"trainer.optim={trainer.optim} reads. Take it out."
            )
    return problems


def _argument_problems(optim: str, extra: Mapping[str, Any]) -> list[str]:
    given = extra.get("optim_args")
    if not isinstance(given, str):
        return []  # said already
    pairs = [pair.partition("=") for pair in str(given).replace(" ", "").split(",")]
    if not all(key and value and "=" not in value for key, _, value in pairs):
        return [
            "trainer.extra.optim_args is no list of key=value. "
            "Write it like '+trainer.extra.optim_args=\"rank=64,scale=0.25\"'."
        ]
    return find_unknown_keys(
        "trainer.extra.optim_args",
        {key: value for key, _, value in pairs},
        optim_args_of(optim),
        reader=f"trainer.optim={optim}",
    )


def _target_problems(optim: str, extra: Mapping[str, Any]) -> list[str]:
    targets, wanted = extra.get("optim_target_modules"), optim.startswith(("galore_", "apollo_"))
    if wanted and not targets:
        return [
            f"trainer.optim={optim} needs its layers. Add +trainer.extra.optim_target_modules=all-linear."
        ]
    if targets and not wanted:
        return [f"trainer.extra.optim_target_modules is not read by trainer.optim={optim}. Take it out."]
    return []
