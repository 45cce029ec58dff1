"""A learning rate schedule that is stretched over more steps than it was made for."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR


def stretch_schedule(scheduler: Any) -> tuple[float, float]:
    """Set the rates that a schedule gives at the step it has come to.

    A scheduler that is loaded restores its step, but leaves the rates that the optimizer was saved with:
    those of the shorter schedule, 0 at the end of a cosine.

    Returns:
        The rate before and after, of the first group of parameters.
    """
    groups = scheduler.optimizer.param_groups
    before = groups[0]["lr"]
    if isinstance(scheduler, LambdaLR):  # the others know of no last step
        for group, rate, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = rate * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in groups]
    return before, groups[0]["lr"]
