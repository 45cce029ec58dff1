"""What the processes of a run decide alike: whether to stop, and what the one that writes has found."""

from gemma_ft import stopping
from gemma_ft.errors import Interrupted
from gemma_ft.training.connections import among_others, any_process, to_share


def agreed_stop() -> Interrupted | None:
    """Return what to raise if any process was asked to stop; all must ask at the same point."""
    own = stopping.requested()
    if not any_process(own is not None):
        return None
    return own or Interrupted("another process was asked to stop", stopping.TERMINATED)


def check_stop() -> None:
    """Stop here, in every process, if one was asked to; all must call it at the same point.

    Raises:
        Interrupted: One was.
    """
    if (stop := agreed_stop()) is not None:
        raise stop


def told_by_writer(number: int | None) -> int | None:
    """Return the number that the writing process gives, in all of them; none below 0."""
    if not among_others():
        return number
    import torch

    told = to_share(-1 if number is None else number)
    torch.distributed.broadcast(told, src=0)
    return None if told.item() < 0 else int(told.item())
