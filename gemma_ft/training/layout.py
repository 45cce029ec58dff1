"""How this process stands among the others, and the accumulation that follows from it."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import ConfigError, TrainingError
from gemma_ft.modeling.drivers import wants_cpu
from gemma_ft.training.launchers import (
    World,
    forget_settings,
    read_world,
    settle_method,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("gemma_ft")

SHARDING_DEVICES: tuple[str, ...] = ("cuda", "xpu")
"""Kinds of devices that FSDP shards over here: on CPUs accelerate falls back to DDP without a word."""

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The processes of a run, as their launcher told them."""

    world_size: int
    """Processes that train together."""
    rank: int
    """This process among them, from 0."""
    accumulation: int
    """Micro-batches that a process adds up for an optimizer step."""
    method: ParallelMethod
    """single, ddp or fsdp."""
    local_rank: int = 0
    """This process among those of its machine, from 0."""
    nodes: int = 1
    """Machines."""
    launcher_precision: str | None = None
    """The number format that the launcher was asked for, in accelerate's words; ours stands."""

    @property
    def sharded(self) -> bool:
        """Whether each process holds a shard of the model."""
        return self.method is ParallelMethod.fsdp

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0


def resolve_layout(config: RunConfig) -> Layout:
    """Read the launcher's variables and derive gradient accumulation from the global batch.

    Accelerate's settings in the environment end here, and a single process is left one GPU.

    Raises:
        ConfigError: `parallel` does not fit how the program was started, or the batch cannot be shared out.
    """
    world = read_world()
    method = settle_method(config, world)
    _check_method(method, world)
    accumulation = _accumulation(config, world.size)
    shard = config.parallel.dp_shard_size
    if shard is not None and world.size % shard:
        raise ConfigError(
            f"parallel.dp_shard_size={shard} does not divide the {world.size} processes into whole groups. "
            f"Give a divisor of {world.size}, or leave it out to share over all."
        )
    asked = forget_settings(accumulation)
    if wants_cpu():
        hide_gpus(keep=0)
    elif world.size == 1:
        if config.parallel.method is ParallelMethod.auto and (others := _gpus_in_sight() - 1) > 0:
            logger.info("one of %d GPUs is used. parallel=ddp or parallel=fsdp uses all of them.", others + 1)
        hide_gpus(keep=1)
    if method is ParallelMethod.single:
        os.environ.pop("LOCAL_RANK", None)  # accelerate would connect this process with itself
    return Layout(
        world_size=world.size,
        rank=world.rank,
        accumulation=accumulation,
        method=method,
        local_rank=world.local_rank,
        nodes=world.nodes,
        launcher_precision=asked,
    )


def check_devices(layout: Layout, kind: str) -> None:
    """Check that the processes of this machine have the devices that their method needs.

    Args:
        layout: The processes.
        kind: torch's name of the device type that would train.

    Raises:
        ConfigError: Shards are asked for where there is no GPU, or two processes would share one.
    """
    if layout.sharded:
        check_shardable(kind)
    if layout.world_size == 1 or kind not in ("cuda", "xpu"):
        return
    gpus = count_gpus()
    bound = gpus == 1 and "TORCHELASTIC_RUN_ID" not in os.environ  # by SLURM, each process to its own
    if layout.local_rank >= gpus and not bound:
        raise ConfigError(
            f"LOCAL_RANK={layout.local_rank} finds {gpus} GPU(s) on this machine, and two processes cannot "
            f"train on one. Start at most {gpus} here, or look at CUDA_VISIBLE_DEVICES."
        )


def check_shardable(kind: str) -> None:
    """Check that FSDP shards over a kind of device.

    Raises:
        ConfigError: It does not.
    """
    if kind not in SHARDING_DEVICES:
        raise ConfigError(
            f"parallel=fsdp shards over GPUs, and this machine shows none (device {kind}). "
            "Use parallel=auto, or start it where there are GPUs."
        )


def check_connected(accelerator: "Accelerator", layout: Layout) -> None:
    """Check that accelerate has connected the processes as they were laid out: it falls back in silence.

    Where the launcher's number format is another one than the run's, say which of them stands.

    Raises:
        TrainingError: It has not.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    expected = {
        ParallelMethod.single: ("NO",),
        ParallelMethod.ddp: ("MULTI_GPU", "MULTI_XPU", "MULTI_CPU"),
        ParallelMethod.fsdp: ("FSDP",),
    }[layout.method]
    found = (accelerator.num_processes, accelerator.process_index)
    if kind not in expected or found != (layout.world_size, layout.rank):
        raise TrainingError(
            f"parallel={layout.method} asked for process {layout.rank} of {layout.world_size}, but "
            f"accelerate has made process {found[1]} of {found[0]} with {kind}. Start it with torchrun, "
            "which needs no settings of its own."
        )
    asked, ours = layout.launcher_precision, accelerator.mixed_precision
    if layout.writes and asked not in (None, ours):
        words = "the launcher's mixed_precision=%s is passed over: model.dtype decides, and this run has %s. "
        words += "Leave it out of the launcher's file, or give model.dtype=%s."
        logger.warning(words, asked, "fp32" if ours == "no" else ours, asked)


def count_gpus() -> int:
    """Count the GPUs in sight, without taking hold of one."""
    import torch

    return torch.cuda.device_count() or torch.xpu.device_count()


def _check_method(method: ParallelMethod, world: World) -> None:
    if method is ParallelMethod.single and world.size > 1:
        raise ConfigError(
            f"parallel=single cannot use the launcher's {world.size} processes. Use parallel=ddp or fsdp."
        )
    if method is ParallelMethod.ddp and world.size == 1:
        raise ConfigError(
            "parallel=ddp needs one process a GPU, which the command line starts where it sees two GPUs or "
            "more. Use parallel=auto for one device, or torchrun --nproc-per-node for processes on CPUs."
        )
    if method is ParallelMethod.fsdp and not world.launched:
        raise ConfigError(
            "parallel=fsdp needs one process a GPU, which the command line starts where it sees GPUs, and "
            "torchrun everywhere. Use parallel=auto for one device without shards."
        )


def _accumulation(config: RunConfig, processes: int) -> int:
    trainer = config.trainer
    share = trainer.micro_batch_size * processes
    if trainer.global_batch_size % share:
        raise ConfigError(
            f"trainer.global_batch_size={trainer.global_batch_size} is not divisible by {share} "
            f"(trainer.micro_batch_size={trainer.micro_batch_size} x {processes} processes). "
            f"Make it a multiple of {share}."
        )
    return trainer.global_batch_size // share


def _gpus_in_sight() -> int:
    """Count NVIDIA's GPUs without torch, which would not look again once they are hidden."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([name for name in named.split(",") if name.strip()])
    return len([*_NVIDIA_GPUS.iterdir()]) if _NVIDIA_GPUS.is_dir() else 0


def hide_gpus(*, keep: int) -> None:
    """Leave this process one GPU or none: with several in sight transformers would use DataParallel.

    Works until torch looks for GPUs, which it does when first asked, not when imported.

    Args:
        keep: How many of those in sight stay, 0 or 1.
    """
    above = ("HIP_VISIBLE_DEVICES",) if "HIP_VISIBLE_DEVICES" in os.environ else ()  # AMD's own stands first
    for name in (*_VISIBLE, *above):
        os.environ[name] = os.environ.get(name, "0").split(",")[0] if keep else ""
