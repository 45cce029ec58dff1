"""How a run ends when it does not finish: status.json says what happened, and nothing half-written stays."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from gemma_ft import stopping
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import GemmaFTError, Interrupted
from gemma_ft.runs import RunFolder, Stage, State
from gemma_ft.secrets import redact
from gemma_ft.training.failures import explain_failure
from gemma_ft.training.layout import Layout
from gemma_ft.training.together import together

_DYING_SECONDS = 3.0
"""What the system may take to clear a killed process away."""

logger = logging.getLogger("gemma_ft")


@contextmanager
def recorded(run: RunFolder, config: RunConfig, layout: Layout) -> Iterator[None]:
    """Leave the truth in status.json when a run is interrupted or fails."""

    def interrupted(stop: BaseException) -> None:
        reason = stop.reason if isinstance(stop, Interrupted) else "interrupted from the keyboard"
        _record(run, layout, State.interrupted, reason)

    try:
        lost = partial(_record_loss, run, layout)
        with stopping.stopped_at_once(interrupted), together(config, layout, lost):
            yield
    except KeyboardInterrupt as stop:
        interrupted(stop)
        raise
    except BaseException as error:
        if layout.writes and run.locked:  # what was being written fills the disk, perhaps
            shutil.rmtree(run.checkpoints / ".writing", ignore_errors=True)
        explained = explain_failure(error, config, run)
        request = stopping.requested()
        if request is not None and explained is None and not isinstance(error, GemmaFTError):
            # a process that loads for this one, or trains with it, got the signal too and has gone
            logger.warning("while stopping: %s: %s", type(error).__name__, error)
            interrupted(request)
            raise request from error
        _record(run, layout, State.failed, str(explained or _said(error)))
        if explained is not None:
            raise explained from error
        raise
    finally:
        run.unlock()


def record_death(run: RunFolder, reason: str) -> None:
    """Say why a run failed whose writing process has died, for one of those that are left."""
    with suppress(OSError, GemmaFTError):
        end = time.monotonic() + _DYING_SECONDS
        while (holder := run.holder()) is not None:
            if not holder.is_near or time.monotonic() > end:  # who is far may live, and a lock waits for that
                return
            time.sleep(0.1)
        run.lock()
        try:
            status = run.read_status()
            if status is not None and status.stage is not Stage.finished:
                run.write_status(State.failed, status.stage, redact(reason))
        finally:
            run.unlock()


def _record_loss(run: RunFolder, layout: Layout, reason: str) -> None:
    if layout.writes:
        _record(run, layout, State.failed, reason)
    else:
        record_death(run, reason)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, GemmaFTError) else f"{type(error).__name__}: {error}"


def _record(run: RunFolder, layout: Layout, state: State, reason: str) -> None:
    if not (layout.writes and run.locked):
        return
    with suppress(OSError, GemmaFTError):  # the run's own end is what has to be told
        status = run.read_status()
        if status is not None and status.stage is not Stage.finished:  # what is done stays done
            run.write_status(state, status.stage, redact(reason))
