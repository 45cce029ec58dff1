"""A folder that is whole under its name, or not there at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.modeling.weights import sync_entries

_FULL_BYTES = 1 << 20  # a disk with less left is full
_REASONS = {
    errno.ENOSPC: "does not fit on its disk. Free some space.",
    errno.EDQUOT: "does not fit on its disk. Free some space.",
    errno.EFBIG: "has a file that is too large for its disk. Write smaller ones: export.max_shard_size=2GB.",
    errno.EROFS: "is on a disk that cannot be written to. Copy the run folder to another one.",
    errno.EIO: "cannot be made: a disk fails to read or to write. Test the disks.",
}


@contextmanager
def whole_folder(destination: Path, outdated: Path | None = None) -> Iterator[Path]:
    """Hand out a folder beside the destination, which takes its name when the block ends well.

    What stood under the name is replaced then, and is still there where the block fails or is cut. Another
    process must not be at work on the same destination.

    Args:
        destination: The folder.
        outdated: A file that speaks of what stood under the name. It is removed before that is replaced,
            and so never speaks of another folder, at whatever moment this is cut.

    Raises:
        ExportError: The disk is full or cannot be written to; what was written is removed.
    """
    partial = destination.with_name(f"{destination.name}.partial")
    replaced = destination.with_name(f"{destination.name}.replaced")
    _restore(replaced, destination)  # where an export was cut between its last two steps
    _discard(replaced, partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_entries(partial)
        if outdated is not None:
            outdated.unlink(missing_ok=True)
        if destination.exists():
            destination.rename(replaced)
        partial.rename(destination)
        sync_entries(destination.parent)
    except BaseException as problem:
        number = _error_number(problem, partial)
        _restore(replaced, destination)
        _remove(partial)
        if number in _REASONS:
            raise ExportError(f"{destination} {_REASONS[number]}") from problem
        raise
    _discard(replaced, partial)


def _error_number(problem: BaseException, partial: Path) -> int | None:
    """Return the system's number of an error, also where a library has lost it on a full disk."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno
    if "No space left on device" in str(problem):  # safetensors
        return errno.ENOSPC
    if isinstance(problem, OSError) and shutil.disk_usage(partial.parent).free < _FULL_BYTES:  # numpy
        return errno.ENOSPC
    return None


def _restore(replaced: Path, destination: Path) -> None:
    if replaced.exists() and not destination.exists():
        replaced.rename(destination)


def _discard(replaced: Path, partial: Path) -> None:
    """Remove both, and never leave half of the replaced folder where it would be taken for whole."""
    _remove(partial)
    if replaced.exists():
        replaced.rename(partial)
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()  # not what it points to
    elif path.exists():
        shutil.rmtree(path)
