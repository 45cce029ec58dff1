"""What the processes of a run see to together, before they exchange tensors and for as long as they live."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import version
from typing import Any

from gemma_ft import secrets, stopping
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import ConfigError, DataError, GemmaFTError, RunError, TrainingError, first_line
from gemma_ft.runs import RunFolder
from gemma_ft.training.layout import Layout
from gemma_ft.training.lifeline import CONNECT_SECONDS, LeftError, Lifeline, Message

logger = logging.getLogger("gemma_ft")

GRACE_SECONDS = 20.0
"""What a process may take to end once another has died: it may wait for that one for ever."""
_OWN_WORD_SECONDS = 8.0
"""What it may take to find by itself what another one has failed of, and to say it better."""
_TOLD_SECONDS, _STOP_TOLD_SECONDS = 2.0, 0.5
_SEEN_SECONDS = 60.0
"""What a network file system may take to show a file of another machine."""
_ALIKE = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
_MOST_NAMED = 4


class LossError(TrainingError):
    """Say that another process has died or failed, which ends this one."""

    def __init__(self, reason: str, *, speaks: bool) -> None:
        """Keep who tells it.

        Args:
            reason: What became of which process.
            speaks: Whether this process, of those that are left, is the one that tells.
        """
        super().__init__(reason)
        self.speaks = speaks
        self.alike = not speaks


class _Company:
    """The other processes, as this one knows them."""

    def __init__(self, layout: Layout, record: Callable[[str], None]) -> None:
        self.layout = layout
        self.line = Lifeline(layout.rank, layout.world_size, self._heard)
        self.hosts = [""] * layout.world_size
        self.lost: LossError | None = None
        self.ended = False
        self.record = record

    def name(self, rank: int) -> str:
        host = f" on {self.hosts[rank]}" if self.hosts[rank] else ""
        return f"process {rank} of {self.layout.world_size}{host}"

    def _heard(self, message: Message) -> None:
        """Act on the end of another process, in the thread that has heard of it."""
        rank, end, text = message["rank"], message["end"], message["text"]
        if end == "stopped" and not self.ended:
            stopping.interrupt("another process was asked to stop")
        elif end == "died":
            self._lose(
                f"{self.name(rank)} has died. The same line again goes on from the last checkpoint.", rank
            )
        elif end == "failed":
            reason = f"{self.name(rank)} failed: {text}"  # the first one says so itself, and writes it down
            self._lose(reason, rank, after=_OWN_WORD_SECONDS, told=rank == 0)
        elif end == "lost":
            self._lose(text, rank, told=True)

    def _lose(self, reason: str, rank: int, *, after: float = 0.0, told: bool = False) -> None:
        if self.lost is not None or self.ended:
            return
        self.lost = LossError(reason, speaks=not told and self.layout.rank == (1 if rank == 0 else 0))
        for seconds, do in ((after, self._interrupt), (after + GRACE_SECONDS, self._end)):
            timer = threading.Timer(seconds, do)
            timer.daemon = True
            timer.start()

    def _interrupt(self) -> None:
        if not self.ended and self.lost is not None:
            stopping.interrupt(str(self.lost), quiet=True)

    def cause_of(self, error: BaseException) -> BaseException:
        """Find what an error follows from: the end of another process, or nothing but itself.

        Who exchanges tensors with a process that dies may notice it before the line tells.
        """
        own = isinstance(error, GemmaFTError) and not isinstance(error, LeftError)
        if own or not isinstance(error, RuntimeError | GemmaFTError | KeyboardInterrupt):
            return error
        stopped = isinstance(error, KeyboardInterrupt)
        end = time.monotonic() + (_STOP_TOLD_SECONDS if stopped else _TOLD_SECONDS)
        while self.lost is None and time.monotonic() < end:
            time.sleep(0.05)
        stop = stopping.requested() if isinstance(error, LeftError) else None
        return self.lost or stop or error

    def _end(self) -> None:
        """End this process, which waits for one that is gone."""
        if self.ended or self.lost is None:
            return
        if self.lost.speaks:
            self.record(str(self.lost))
            print(f"error: {secrets.redact(str(self.lost))}", file=sys.stderr, flush=True)
        os._exit(self.lost.exit_code)


_company: _Company | None = None
_runs = 0


@contextmanager
def together(config: RunConfig, layout: Layout, record: Callable[[str], None]) -> Iterator[None]:
    """Hold the processes of a run together: they begin alike, and none outlives the death of another.

    Args:
        config: The whole run.
        layout: Its processes.
        record: Writes down why the run failed, where this process ends without coming back.

    Raises:
        ConfigError: A process was started with other settings, or has other libraries.
        TrainingError: A process cannot be reached.
    """
    global _company, _runs
    if layout.world_size == 1:
        yield
        return
    _runs += 1
    company = _Company(layout, record)
    company.line.connect(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} {_runs}")
    _company = company
    end, text = "done", ""
    try:
        _call_the_roll(company, config)
        yield
    except BaseException as error:
        with stopping.deferred():
            cause = company.cause_of(error)
            end = "stopped" if isinstance(cause, KeyboardInterrupt) else "failed"
            text = secrets.redact(first_line(cause))
            if cause is company.lost:
                end = "lost"
                if company.lost.speaks:
                    record(str(cause))
        if cause is error:
            raise
        raise cause from error
    finally:
        company.ended = True
        with stopping.deferred():
            company.line.leave(end, text)
        _company = None


def check_same_folder(run: RunFolder) -> None:
    """Check that all processes see the run folder that the first one has claimed; all must call it.

    Raises:
        RunError: One sees another folder of that name, as on machines without a shared disk.
    """
    if _company is None:
        return
    mine = _holder(run)
    claimed = _company.line.meet(mine if _company.layout.writes else None)[0]
    end = time.monotonic() + _SEEN_SECONDS
    while mine != claimed and time.monotonic() < end:
        time.sleep(1)
        mine = _holder(run)
    for rank, sees in enumerate(_company.line.meet(mine == claimed)):
        if not sees:
            raise RunError(
                f"output_dir={run.path} of {_company.name(rank)} is not the folder that {_company.name(0)} "
                "has claimed. Give a folder on a disk that all machines share."
            )


def wait_for_rows(facts: Mapping[str, Any]) -> None:
    """Wait until all processes have their rows, however long one takes, and check that they are the same.

    Process groups wait for a limited time; so they are only formed afterwards.

    Raises:
        DataError: A process has other rows.
    """
    if _company is None:
        return
    said = _company.line.meet({key: value for key, value in facts.items() if key.endswith("sha256")})
    for rank, theirs in enumerate(said):
        if theirs != said[0]:
            keys = ", ".join(key for key in said[0] if theirs.get(key) != said[0][key])
            raise DataError(
                f"{_company.name(rank)} has prepared other rows than {_company.name(0)} ({keys}). "
                "Give all machines the same files."
            )


def _holder(run: RunFolder) -> dict[str, Any] | None:
    holder = run.holder()
    return None if holder is None else asdict(holder)


def _call_the_roll(company: _Company, config: RunConfig) -> None:
    """Learn who is there, and check that all were started alike."""
    mine = dict(_settings(config)) | {f"{name}=": version(name) for name in _ALIKE}
    del mine["output_dir="]  # one folder may have two names; that it is one is seen once it is claimed
    said = company.line.meet({"host": socket.gethostname(), "with": mine}, limit=CONNECT_SECONDS)
    company.hosts = [one["host"] for one in said]
    first = said[0]["with"]
    for rank, one in enumerate(said):
        other = [key for key in {**first, **one["with"]} if one["with"].get(key) != first.get(key)]
        if other:
            theirs = [f"{key}{one['with'].get(key)} (there: {first.get(key)})" for key in other]
            raise ConfigError(
                secrets.redact(
                    f"{company.name(rank)} was started otherwise than {company.name(0)}: "
                    f"{', '.join(theirs[:_MOST_NAMED])}. "
                    "Give every machine the same line and the same packages."
                )
            )


def _settings(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}=", str(value)
