"""How this process stands among the others, and the accumulation that follows from it."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import ConfigError

if TYPE_CHECKING:
    import torch


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

    Raises:
        ConfigError: `parallel` does not fit how the program was started, or the batch cannot be shared out.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    method = config.parallel.method
    if method is ParallelMethod.single and world_size > 1:
        raise ConfigError(
            f"parallel=single cannot use the launcher's {world_size} processes. Use parallel=ddp."
        )
    if method is ParallelMethod.ddp and world_size == 1:
        raise ConfigError(
            "parallel=ddp needs one process a GPU, which the command line starts where it sees two GPUs or "
            "more. Use parallel=auto for one device."
        )
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise ConfigError(
                f"parallel={method} cannot use the launcher's {variable}. Launch plain multi-GPU training."
            )
    if method is ParallelMethod.auto:
        method = ParallelMethod.single if world_size == 1 else ParallelMethod.ddp
    if world_size == 1:
        hide_other_gpus()
    share = config.trainer.micro_batch_size * world_size
    if config.trainer.global_batch_size % share:
        raise ConfigError(
            f"trainer.global_batch_size={config.trainer.global_batch_size} is not divisible by {share} "
            f"(trainer.micro_batch_size={config.trainer.micro_batch_size} x {world_size} processes). "
            f"Make it a multiple of {share}."
        )
    return Layout(
        world_size=world_size,
        rank=rank,
        accumulation=config.trainer.global_batch_size // share,
        method=method,
    )


def among_others() -> bool:
    """Tell whether this process is connected to others."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def to_share(number: int) -> "torch.Tensor":
    """Hold a number where the connected processes can exchange it: NCCL takes what is on a GPU only."""
    import torch

    return torch.tensor(number, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def any_process(flag: bool) -> bool:
    """Tell whether any process of the run says yes; all must ask at the same point, and all hear the same."""
    import torch

    if not among_others():
        return flag
    votes = to_share(int(flag))
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return bool(votes.item())


def leave_processes() -> None:
    """Close the connections to the other processes of a run, once nothing of its trainer is in use.

    DDP's reducer holds the process group too. Were it the last to let go, gloo's threads could wait for ever
    for the interpreter lock that their own shutdown holds; so the trainer is collected first.
    """
    import gc

    import torch

    if among_others():
        gc.collect()
        torch.distributed.destroy_process_group()


def hide_other_gpus() -> None:
    """Leave this process one GPU; with several in sight transformers would wrap the model in DataParallel.

    Works until torch looks for GPUs, which it does when first asked, not when imported.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]
