"""Trackio: a database in the run folder; nothing is sent anywhere."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from gemma_ft.errors import ConfigError
from gemma_ft.training.trackers.tracker import Tracker

logger = logging.getLogger("gemma_ft")

ELSEWHERE = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID"}
"""Variables that would have trackio send metrics to another place."""


class Trackio(Tracker):
    """Log to a database in the run folder; a run that goes on is the same run there."""

    name = "trackio"

    def __init__(self, folder: Path, project: str, name: str, settings: dict[str, Any]) -> None:
        """Open the database.

        Raises:
            ConfigError: Trackio does not take the project's name.
        """
        super().__init__()
        for variable in ELSEWHERE & os.environ.keys():
            logger.info("tracking=trackio stays in the run folder: %s is not used.", variable)
        trackio = _load_trackio(folder)
        try:
            with _by_itself():
                self._run = trackio.init(
                    project=project,
                    name=name,
                    config=settings,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
                trackio.context_vars.current_run.set(None)  # or it is finished again when Python ends
        except ValueError as error:
            raise ConfigError(f"tracking.project={project} is refused by trackio: {error}") from error

    def send(self, step: int, metrics: dict[str, float]) -> None:
        """Queue the metrics of a step; a thread of trackio's writes them."""
        self._run.log({**metrics, "train/global_step": step}, step=step)

    def finish(self, exit_code: int) -> None:
        """Write what is queued."""
        with redirect_stdout(io.StringIO()):
            self._run.finish()


def _load_trackio(folder: Path) -> Any:
    """Import trackio for a folder; it reads the variable once, when it is imported."""
    os.environ["TRACKIO_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    loaded = sys.modules.get("trackio")
    if loaded is not None and getattr(loaded, "TRACKIO_DIR", None) != folder:
        for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            del sys.modules[name]
    return import_module("trackio")


@contextmanager
def _by_itself() -> Iterator[None]:
    """Keep trackio from asking the hub for the user's name, from other places and from chatter."""
    from huggingface_hub import constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    elsewhere = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        os.environ |= elsewhere
