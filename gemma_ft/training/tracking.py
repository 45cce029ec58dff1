"""The tracker of a run: opened before anything is loaded, and closed however the run ends."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from gemma_ft.config.compose import config_yaml
from gemma_ft.config.schema import RunConfig, TrackingMethod
from gemma_ft.errors import GemmaFTError, RunError
from gemma_ft.runs import RunFolder
from gemma_ft.secrets import redact
from gemma_ft.training.trackers.tracker import Tracker, one_line

logger = logging.getLogger("gemma_ft")


def open_tracking(config: RunConfig, run: RunFolder) -> Tracker:
    """Open the tracker that is asked for; made for the process that writes.

    Raises:
        ConfigError: The tracker's server refuses the user's key or project.
        RunError: It does not start on this machine.
    """
    try:
        return _open(config, run)
    except GemmaFTError:
        raise
    except Exception as error:
        raise RunError(
            f"tracking={config.tracking.method} does not start: {one_line(error)}. "
            "Mend that, or use tracking=none."
        ) from error


def _open(config: RunConfig, run: RunFolder) -> Tracker:
    project, folder = config.tracking.project, run.path.resolve()
    match config.tracking.method:
        case TrackingMethod.wandb:
            from gemma_ft.training.trackers.weights_and_biases import open_wandb

            return open_wandb(run.path, project, config.name, _settings(config))
        case TrackingMethod.tensorboard:
            from gemma_ft.training.trackers.tensorboard import TensorBoard

            logger.info("tracking=tensorboard: tensorboard --logdir %s/tensorboard", run.path)
            return TensorBoard(folder / "tensorboard", redact(config_yaml(config)))
        case TrackingMethod.trackio:
            from gemma_ft.training.trackers.trackio import Trackio

            logger.info("tracking=trackio: TRACKIO_DIR=%s trackio show", folder / "trackio")
            return Trackio(folder / "trackio", project, config.name, _settings(config))
        case TrackingMethod.none:
            return Tracker()


@contextmanager
def tracked(config: RunConfig, run: RunFolder, *, writes: bool) -> Iterator[Tracker]:
    """Track what runs here, and close the tracker however it ends.

    Args:
        config: The run.
        run: Its folder.
        writes: Whether this process is the one that writes; the others keep nothing.

    Raises:
        GemmaFTError: The tracker cannot be used.
    """
    tracker = open_tracking(config, run) if writes else Tracker()
    try:
        yield tracker
    except BaseException as error:
        tracker.close(exit_code=getattr(error, "exit_code", 1))
        raise
    tracker.close(exit_code=0)


def _settings(config: RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(redact(json.dumps(asdict(config))))
    return settings
