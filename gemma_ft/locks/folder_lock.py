"""A folder that one process has for itself.

The system's lock goes with its process, however that ends. But network file systems may keep it to one
machine, or know none: so the file says who holds it, and its holder touches it for as long as it lives.
"""

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gemma_ft.errors import RunError
from gemma_ft.locks.holder import STALE_SECONDS, describe_self, look, now_on, parse_holder

logger = logging.getLogger("gemma_ft")

HEARTBEAT_SECONDS = 10.0
_LOOK_SECONDS = 1.0


class FolderLock:
    """The lock of a folder, from `acquire` to `release` or to the end of the process."""

    def __init__(self, path: Path, lost: Callable[[str], None]) -> None:
        """Point to a lock file, which need not exist yet.

        Args:
            path: The lock file.
            lost: Called with a reason, from another thread, when another process has taken the lock over.
        """
        self.path = path
        self._lost = lost
        self._handle: int | None = None
        self._text = ""
        self._owner = 0
        self._released = threading.Event()
        self._taken_by: str | None = None

    @property
    def held(self) -> bool:
        """Whether this process, and none that it was forked from, has the folder for itself."""
        return bool(self._text) and self._owner == os.getpid() and self._taken_by is None

    def check(self) -> None:
        """Check that nobody has taken the lock over.

        Raises:
            RunError: Somebody has: this process was suspended, or cut off from the disk, for long.
        """
        if self._taken_by is not None:
            raise RunError(
                f"{self.path.parent} was taken over by {self._taken_by} while this process showed no sign of "
                "life. Leave it to that one."
            )

    def acquire(self) -> None:
        """Take the lock. Where it is refused, nothing is touched.

        Raises:
            RunError: Another process holds it, or the folder cannot be written to.
        """
        handle = self._open()
        try:
            granted = _lock(handle)
            if granted is False:
                raise self._in_use()
            self._wait_for_silence(sure=bool(granted))
            self._sign(handle, sure=bool(granted))
        except BaseException:
            os.close(handle)
            self._text = ""
            raise
        if granted:
            self._handle = handle
            _held.add(self)
        else:
            os.close(handle)
        self._owner, self._taken_by, self._released = os.getpid(), None, threading.Event()
        threading.Thread(target=self._beat, args=(self._released,), daemon=True, name="heartbeat").start()

    def release(self) -> None:
        """Let others take the lock; nothing stays that would refuse them."""
        self._released.set()
        with suppress(OSError):
            if self.held and self._handle is not None:
                os.ftruncate(self._handle, 0)
            elif self.held and self._is_ours():
                os.truncate(self.path, 0)
        self.forget()

    def forget(self) -> None:
        """Give up what this process knows of the lock, and leave the file as it is."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._text = None, ""

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError as error:
            raise self._moved() from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _wait_for_silence(self, *, sure: bool) -> None:
        """Return once the holder that the file names is known to be gone; a living one shows itself.

        Args:
            sure: Whether the system granted the lock, which rules out its own processes, and only those.
        """
        text, beat = first = self._read()
        holder = parse_holder(text)
        if not text or (holder is not None and ((sure and holder.is_near) or holder.is_gone)):
            return
        who, told = holder or "an unknown process", False
        while (silence := now_on(self.path) - beat) < STALE_SECONDS:
            if not told:
                words = "%s was in use by %s %.0f s ago; waiting for a sign of life"
                logger.info(words, self.path.parent, who, max(silence, 0))
                told = True
            time.sleep(_LOOK_SECONDS)
            if self._read() != first:
                raise self._in_use()
        words = "taking %s over from %s, which has shown no sign of life for %.0f s"
        logger.info(words, self.path.parent, who, silence)

    def _sign(self, handle: int, *, sure: bool) -> None:
        """Write down who holds the lock."""
        self._check_place(handle)
        self._text = describe_self()
        content = self._text.encode()
        try:
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, content)
            os.ftruncate(handle, len(content))
            os.fsync(handle)
        except OSError as error:
            raise self._unwritable(error) from error
        if not sure:  # of two that sign at once, the later one stays
            time.sleep(_LOOK_SECONDS)
            if self._read()[0] != self._text:
                raise self._in_use()

    def _check_place(self, handle: int) -> None:
        """Check that the folder was not moved between opening the file and locking it."""
        try:
            same = os.path.samestat(os.fstat(handle), self.path.stat())
        except OSError:
            same = False
        if not same:
            raise self._moved()

    def _read(self) -> tuple[str, float]:
        try:
            return look(self.path)
        except FileNotFoundError as error:
            raise self._moved() from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _beat(self, released: threading.Event) -> None:
        """Touch the file for as long as it is ours, and tell when it is not any more."""
        while not released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a network file system may stand still for a while
                if not self._is_ours() and not released.wait(_LOOK_SECONDS) and not self._is_ours():
                    self._tell_lost()
                    return
                if not released.is_set():
                    os.utime(self.path)

    def _tell_lost(self) -> None:
        self._taken_by = str(parse_holder(look(self.path)[0]) or "another process")
        with suppress(Exception):
            self._lost(f"{self.path.parent} was taken over by {self._taken_by}")

    def _is_ours(self) -> bool:
        return look(self.path)[0] == self._text

    def _in_use(self) -> RunError:
        text, beat = self._read()
        holder, silence = parse_holder(text), max(now_on(self.path) - beat, 0)
        who = f" ({holder}, last sign of life {silence:.0f} s ago)" if holder else ""
        return RunError(
            f"{self.path.parent} is in use by another process{who}. Wait for it or stop it, or give name=..."
        )

    def _moved(self) -> RunError:
        return RunError(
            f"{self.path.parent} was moved by another process meanwhile. Give the same line again."
        )

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path.parent} cannot be written to ({error.strerror}). "
            "Copy the run folder to another disk."
        )


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _let_go() -> None:
    """Close what a fork has copied: a child would hold the lock for longer than its parent lives."""
    for lock in list(_held):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _lock(handle: int) -> bool | None:
    """Ask the system for the lock: whether it was granted, or None where it knows none."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
