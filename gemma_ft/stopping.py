"""Being asked to stop: by a signal, by the clock, by the death of a launcher.

Where a run may end anywhere (loading, tokenising, exporting), a stop is raised where the program is, since
whatever is written appears whole or not at all. Where it is `deferred` (training), it is noted, and the step
loop asks.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from gemma_ft.errors import Interrupted

logger = logging.getLogger("gemma_ft")
_Hook = Callable[[Any], object]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, a scheduler's or a launcher's stop, and a terminal that was closed."""
TERMINATED = 128 + signal.SIGTERM
"""The exit code of a run that was stopped by anything but Ctrl-C: 143."""
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
_SAME_STOP_SECONDS = 0.5
"""`timeout` and some schedulers send a signal twice, to the process and to its group."""
_SAME_LAUNCHED_STOP_SECONDS = 5.0
"""A launcher passes on what a terminal has sent to its workers as well."""
_LAUNCHER_POLL_SECONDS = 2.0
_ORPHAN_SECONDS = 300.0
"""How long an orphan may take to its next step before it is ended: the others may be gone."""
_RAISE_AGAIN = 0
"""Sent to the thread that watches signals; no signal has this number."""


class _Stop:
    """What was asked for, in this process."""

    def __init__(self) -> None:
        self.request: Interrupted | None = None
        self.listening = False
        self.deferrals = 0
        self.told = False
        self.since = 0.0
        self.at_once: Callable[[Interrupted], None] | None = None

    def note(self, request: Interrupted, *, quiet: bool = False) -> None:
        if self.request is None:
            self.request, self.since = request, time.monotonic()
            if self.deferrals and not quiet:
                logger.info("%s: stopping after this step. A second signal stops at once.", request.reason)


_stop = _Stop()


def requested() -> Interrupted | None:
    """Return what to raise if this process was asked to stop, else None."""
    return None if _stop.request is None else _stop.request.anew()


def check() -> None:
    """Stop here if this process was asked to.

    Raises:
        Interrupted: It was.
    """
    if _stop.request is not None:
        raise _stop.request.anew()


@contextmanager
def deferred() -> Iterator[None]:
    """Note a stop instead of raising it: what runs here asks `requested` where it can stop."""
    _stop.deferrals += 1
    try:
        yield
    finally:
        _stop.deferrals -= 1


@contextmanager
def stopped_at_once(record: Callable[[Interrupted], None]) -> Iterator[None]:
    """Have this called before a second signal ends the process on the spot."""
    before, _stop.at_once = _stop.at_once, record
    try:
        yield
    finally:
        _stop.at_once = before


@contextmanager
def listen() -> Iterator[None]:
    """Take SIGTERM, SIGINT, SIGHUP and a launcher's death as requests to stop; in the main thread only."""
    global _stop
    if _stop.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    _stop = stop = _Stop()
    stop.listening = True
    wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    nohup = {number for number in SIGNALS[2:] if signal.getsignal(number) is signal.SIG_IGN}
    heard = [number for number in SIGNALS if number not in nohup]
    handlers = {number: signal.signal(number, _on_signal) for number in heard}
    unraisable, sys.unraisablehook = sys.unraisablehook, _raise_again(stop, outbox, sys.unraisablehook)
    threading.Thread(target=_watch_signals, args=(inbox, stop), daemon=True, name="signals").start()
    launched = any(name in os.environ for name in _LAUNCHED)
    if launched:
        threading.Thread(
            target=_watch_launcher, args=(os.getppid(), stop), daemon=True, name="launcher"
        ).start()
    try:
        yield
    finally:
        stop.listening = False
        _stop = _Stop()  # what one run was asked is not asked of the next
        sys.unraisablehook = unraisable
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            repeats = launched and stop.request is not None and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if repeats else handler)  # what has ended us is still told
        outbox.close()


@contextmanager
def within(seconds: float | None, reason: str) -> Iterator[None]:
    """Ask for a stop when a time is up; None sets no limit."""
    if seconds is None:
        yield
        return
    longest = min(seconds, threading.TIMEOUT_MAX)  # beyond it a clock does not start
    clock = threading.Timer(longest, interrupt, args=(reason,))
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


def interrupt(reason: str, *, quiet: bool = False) -> None:
    """Ask this process to stop, from any thread.

    Args:
        reason: Why.
        quiet: Say nothing of it, and raise nothing where the next step is awaited, which may never come.
    """
    _stop.note(Interrupted(reason, TERMINATED), quiet=quiet)
    if quiet and _stop.deferrals:
        _stop.told = True
    elif _stop.listening:
        _signal_main_thread()


def _signal_main_thread() -> None:
    if sys.platform != "win32":
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _on_signal(number: int, frame: FrameType | None) -> None:
    _stop.note(_from_signal(number))
    first, _stop.told = not _stop.told, True
    if first and not _stop.deferrals:  # a later one must not disturb what the first one's end still writes
        check()


def _raise_again(stop: _Stop, outbox: socket.socket, otherwise: _Hook) -> _Hook:
    """Return a hook for what Python drops, as in a `__del__`: it has a stop raised again after that."""

    def hook(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted) and stop.listening:
            stop.told, stop.since = False, time.monotonic()
            outbox.send(bytes([_RAISE_AGAIN]))
        else:
            otherwise(dropped)

    return hook


def _from_signal(number: int) -> Interrupted:
    return Interrupted(signal.Signals(number).name, 128 + number)


def _watch_signals(inbox: socket.socket, stop: _Stop) -> None:
    """Note signals as they come, also while the main thread computes, where Python's handlers wait."""
    launched = any(name in os.environ for name in _LAUNCHED)
    same = _SAME_LAUNCHED_STOP_SECONDS if launched else _SAME_STOP_SECONDS
    with inbox:
        while numbers := inbox.recv(64):
            if _RAISE_AGAIN in numbers:
                time.sleep(0.01)  # the program may still be where Python drops it
                if stop.listening:
                    _signal_main_thread()
            for number in (number for number in numbers if number in SIGNALS):
                if stop.request is None:
                    stop.note(_from_signal(number))
                elif stop.listening and time.monotonic() - stop.since > same:
                    _end_at_once(stop)


def _end_at_once(stop: _Stop) -> None:
    request = stop.request or _from_signal(signal.SIGTERM)
    if stop.at_once is not None:
        with suppress(Exception):
            stop.at_once(request)
    os._exit(request.exit_code)


def _watch_launcher(parent: int, stop: _Stop) -> None:
    """Stop when the launcher is gone, which would have told us to; end it where no step comes any more."""
    while stop.listening and os.getppid() == parent:
        time.sleep(_LAUNCHER_POLL_SECONDS)
    if stop.listening:
        interrupt("its launcher is gone")
        time.sleep(_ORPHAN_SECONDS)
        if stop.listening:
            _end_at_once(stop)


def _hold_signals() -> None:
    if _stop.listening:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_signals_through() -> None:
    if _stop.listening:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _forget() -> None:
    """Leave the parent's signals to the parent: a forked child would tell it of its own."""
    if _stop.listening:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                if signal.getsignal(number) is _on_signal:
                    signal.signal(number, signal.SIG_DFL)
        _let_signals_through()
        _stop.listening = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_through, after_in_child=_forget)
