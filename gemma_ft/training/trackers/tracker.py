"""What every tracker has in common: it never stops a run, and never holds it up for long."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("gemma_ft")

CLOSE_SECONDS = 8.0
"""How long closing may take; what a tracker has not sent by then stays on disk."""


class Tracker:
    """Where a run's metrics go beside metrics.jsonl; this one keeps nothing."""

    name = "none"

    def __init__(self) -> None:
        self._open = True

    def log(self, record: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl; an error of the tracker is told once, and the run goes on."""
        if not self._open:
            return
        try:
            self.send(record["step"], named(record))
        except Exception as error:  # whatever it is, no metric is worth a run
            self._open = False
            logger.warning(
                "tracking=%s stops: %s. The run goes on; metrics.jsonl has every number.",
                self.name,
                one_line(error),
            )

    def close(self, *, exit_code: int) -> None:
        """Send what is left within `CLOSE_SECONDS`; raises nothing.

        Args:
            exit_code: 0 for a run that has trained to its end.
        """
        # A thread, since no library promises how long its own closing takes.
        closing = threading.Thread(target=self._close, args=(exit_code,), daemon=True, name="tracker")
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            logger.info("tracking=%s takes too long to close; what it has not written is lost.", self.name)
        self._open = False

    def _close(self, exit_code: int) -> None:
        try:
            self.finish(exit_code)
        except Exception as error:
            if self._open:  # else its end has been told
                logger.warning("tracking=%s did not close: %s.", self.name, one_line(error))

    def send(self, step: int, metrics: dict[str, float]) -> None:
        """Pass on the metrics of a step."""

    def finish(self, exit_code: int) -> None:
        """Send what is left, and close."""


def named(record: Mapping[str, Any]) -> dict[str, float]:
    """Name a record's numbers as transformers names them in trackers: eval/loss, train/loss, ..."""
    return {
        f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}": value
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float)
    }


def one_line(error: Exception) -> str:
    """Word a library's error as a part of a sentence."""
    return " ".join(f"{type(error).__name__} {error}".split())[:200].rstrip(".")
