"""How a run ends when it does not finish: status.json says what happened, and nothing half-written stays."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gemma_ft import stopping
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import GemmaFTError, Interrupted
from gemma_ft.runs import RunFolder, Stage, State
from gemma_ft.secrets import redact
from gemma_ft.training.failures import explain_failure
from gemma_ft.training.layout import Layout

logger = logging.getLogger("gemma_ft")


@contextmanager
def recorded(run: RunFolder, config: RunConfig, layout: Layout) -> Iterator[None]:
    """Leave the truth in status.json when a run is interrupted or fails."""

    def interrupted(stop: BaseException) -> None:
        reason = stop.reason if isinstance(stop, Interrupted) else "interrupted from the keyboard"
        _record(run, layout, State.interrupted, reason)

    try:
        with stopping.stopped_at_once(interrupted):
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


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, GemmaFTError) else f"{type(error).__name__}: {error}"


def _record(run: RunFolder, layout: Layout, state: State, reason: str) -> None:
    if not (layout.writes and run.locked):
        return
    with suppress(OSError, GemmaFTError):  # the run's own end is what has to be told
        status = run.read_status()
        if status is not None and status.stage is not Stage.finished:  # what is done stays done
            run.write_status(state, status.stage, redact(reason))
