"""Trackers: what must be settled before the trainer starts them."""

import logging
import netrc
import os
from pathlib import Path

from gemma_ft.config.schema import RunConfig, TrackingMethod
from gemma_ft.runs import RunFolder

logger = logging.getLogger("gemma_ft")


def prepare_tracking(config: RunConfig, run: RunFolder) -> None:
    """Point Weights & Biases into the run folder, and take it offline where no key is set."""
    if config.tracking.method is not TrackingMethod.wandb:
        return
    os.environ["WANDB_PROJECT"] = config.tracking.project
    os.environ["WANDB_DIR"] = str(run.path.resolve())
    os.environ.setdefault("WANDB_SILENT", "true")
    if "WANDB_MODE" not in os.environ and not has_wandb_key():
        os.environ["WANDB_MODE"] = "offline"
        logger.info(
            "tracking=wandb: no key is set, so it stays offline; later: wandb sync %s/wandb/offline-*",
            run.path,
        )


def has_wandb_key() -> bool:
    """Tell whether this user is logged in to Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(file).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
