"""The connections between the processes of a run: whether there are any, what goes over them, their end."""

from typing import TYPE_CHECKING

from gemma_ft.training.launchers import clear_settings

if TYPE_CHECKING:
    import torch


def among_others() -> bool:
    """Tell whether this process is connected to others."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def to_share(number: int) -> "torch.Tensor":
    """Hold a number where the connected processes can exchange it: NCCL takes what is on a GPU only."""
    import torch

    backends = torch.distributed.get_backend_config()  # like cpu:gloo,cuda:nccl
    kinds = [entry.partition(":")[0] for entry in backends.split(",")]
    return torch.tensor(number, device="cpu" if "cpu" in kinds else kinds[0])


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
    clear_settings()
