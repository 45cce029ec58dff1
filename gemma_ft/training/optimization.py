"""The optimizer and its schedule, tried out before a model is loaded for them."""

import inspect
from textwrap import shorten
from typing import TYPE_CHECKING

from gemma_ft.config.extra import find_unknown_keys
from gemma_ft.errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import SchedulerType
    from trl import SFTConfig

_STEPS = 1_000_000
"""Length of the schedule that is tried out: no setting is too long for it."""


def check_optimization(arguments: "SFTConfig") -> None:
    """Build the optimizer and the schedule for a few numbers; take a step on a CPU, and on shards.

    Raises:
        ConfigError: A package or an argument is missing, or a value cannot be used.
    """
    from torch.optim.lr_scheduler import LRScheduler
    from transformers.optimization import get_scheduler

    optimizer = _build_optimizer(arguments)
    if optimizer is None:
        return
    schedule, given = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs or {}
    unknown = find_unknown_keys(
        "trainer.extra.lr_scheduler_kwargs",
        given,
        _settings_of(schedule),
        reader=f"trainer.lr_scheduler_type={schedule.value}",
    )
    if unknown:
        raise ConfigError(*unknown)
    try:
        built = get_scheduler(
            schedule,
            optimizer,
            num_warmup_steps=0,  # a warm-up reads none of the settings
            num_training_steps=_STEPS,
            scheduler_specific_kwargs=given,
        )
        optimizer.step()
        if isinstance(built, LRScheduler) and "metrics" not in inspect.signature(built.step).parameters:
            built.step()
    except Exception as error:
        raise ConfigError(
            f"trainer.lr_scheduler_type={schedule.value} cannot be built ({first_line(error).rstrip('.')}). "
            "Give what it needs as +trainer.extra.lr_scheduler_kwargs.KEY=VALUE."
        ) from error


def _settings_of(schedule: "SchedulerType") -> tuple[str, ...]:
    """Name the settings that a schedule reads; some functions of transformers only hand theirs to a class."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

    reader = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}.get(
        schedule.value, TYPE_TO_SCHEDULER_FUNCTION[schedule]
    )
    ours = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return tuple(name for name in inspect.signature(reader).parameters if name not in ours)


def _build_optimizer(arguments: "SFTConfig") -> "torch.optim.Optimizer | None":
    """Build the optimizer for a stand-in; None where it must see the model itself."""
    import torch
    from transformers import Trainer

    with torch.random.fork_rng(devices=[]):
        stand_in = torch.nn.Linear(4, 4) if not arguments.fsdp else _sharded_linear(arguments)
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, stand_in)
        optimizer: torch.optim.Optimizer = kind(
            [{"params": stand_in.parameters(), "weight_decay": 0.0}], **settings
        )
    except Exception as error:
        if arguments.optim_target_modules and not isinstance(error, ImportError):
            return None  # the stand-in has none of the layers
        raise ConfigError(
            f"trainer.optim={arguments.optim.value} cannot be built ({first_line(error).rstrip('.')}). "
            "Mend that, or use trainer.optim=adamw_torch."
        ) from error
    if arguments.fsdp:
        _check_shards(arguments, stand_in, optimizer)
    elif arguments.use_cpu:
        stand_in(torch.ones(1, 4)).sum().backward()
    return optimizer


def _sharded_linear(arguments: "SFTConfig") -> "torch.nn.Module":
    """Shard a layer over the processes; large enough for optimizers that hold small ones otherwise."""
    import torch
    from torch.distributed.fsdp import fully_shard

    layer = torch.nn.Linear(128, 128, device=arguments.device)
    fully_shard(layer)
    return layer


def _check_shards(
    arguments: "SFTConfig", layer: "torch.nn.Module", optimizer: "torch.optim.Optimizer"
) -> None:
    """Take a step on a sharded layer, which optimizers with code of their own for it cannot."""
    import torch

    began_with_state = bool(optimizer.state)  # of weights that were whole when it was built
    try:
        layer(torch.ones(1, 128, device=arguments.device)).sum().backward()
        optimizer.step()
    except Exception as error:
        reason = f" ({shorten(first_line(error).rstrip('.'), 120, placeholder='...')})"
    else:
        reason = " (its state is made before they are)" if began_with_state else ""
    if reason:
        raise ConfigError(
            f"trainer.optim={arguments.optim.value} cannot step on the shards of parallel=fsdp{reason}. "
            "Use trainer.optim=adamw_torch, whose state is sharded too."
        )
