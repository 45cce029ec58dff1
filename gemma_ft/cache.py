"""Where this machine keeps what can be made again: the bundled model, tokens."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from gemma_ft.errors import DataError

logger = logging.getLogger("gemma_ft")


def cache_folder() -> Path:
    """Return the folder of everything that is cached: `gemma_ft` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma_ft"


def writable_cache(name: str) -> Path:
    """Return a folder of the cache, made if need be.

    Where the cache cannot be written it is a temporary one, which goes with this process.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logger.warning("%s cannot be written (%s): nothing is cached there.", folder, error.strerror)
        return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gemma_ft-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Tell in one line that something could not be written into a folder of the cache.

    Raises:
        DataError: The disk is full, or refuses.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot hold {what} ({error.strerror or error}). "
            "Free some space there, or set XDG_CACHE_HOME to another disk."
        ) from error


@contextmanager
def one_at_a_time(path: Path, doing: str) -> Iterator[None]:
    """Let one process of this machine at a time into a block; the others wait for it.

    Args:
        path: The lock file.
        doing: What the other process is at, for the line that tells of waiting.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that is %s", doing)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: at worst the work is done twice
            pass
        yield
