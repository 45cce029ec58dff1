"""What a failure means to the user and what helps, in one line."""

import errno
import json
import math
import shutil
import tempfile
from pathlib import Path

from gemma_ft.cache import cache_folder
from gemma_ft.config.schema import Dtype, RunConfig
from gemma_ft.errors import GemmaFTError, TrainingError
from gemma_ft.runs import RunFolder, Stage
from gemma_ft.training.memory import explain_out_of_memory

_ROWS_NAMED = 5
_FULL = ("PytorchStreamWriter", "unexpected pos", "No space left on device", "Disk quota exceeded")
"""What torch's writer says, and the system's own words where a library has kept them alone."""
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "Broken pipe",
    "Socket closed",
)
"""What gloo and NCCL say where a process they were to hear from is not there any more."""
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM)
"""What the system says where something else stands at the place of a run's file."""
_BROKEN = (errno.EROFS, errno.EIO, errno.ESTALE)
"""What it says of a disk that takes or gives nothing any more."""
_NOTHING_LEFT = 1 << 20
"""Bytes; a disk with less is the one that was full."""


class NotFiniteError(TrainingError):
    """A loss or gradient that is no finite number: nothing that follows from it could be right."""

    def __init__(self, what: str, *, step: int, rows: tuple[str, ...] = (), weights: bool = False) -> None:
        """Say where it was seen.

        Args:
            what: What is not finite, and its value.
            step: The optimizer step, from 1; 0 is before training.
            rows: Where the rows of its batch came from.
            weights: Whether weights are not finite either.
        """
        named = ", ".join(rows[:_ROWS_NAMED])
        more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        super().__init__(f"{what} at step {step}" + (f", in the batch of {named}{more}" if rows else ""))
        self.step = step
        self.rows = rows
        self.weights = weights


def explain_failure(error: BaseException, config: RunConfig, run: RunFolder) -> TrainingError | None:
    """Word a failure that the user can do something about; None leaves it as it is."""
    if isinstance(error, NotFiniteError):
        explained = _explain_not_finite(error, config, run)
        explained.alike = True
        return explained
    if (short := explain_out_of_memory(error, config, run)) is not None:
        return short
    if run.locked and not run.path.exists() and not isinstance(error, GemmaFTError):
        return TrainingError(
            f"{run.path} was moved or deleted while the run worked in it. Move it back, or name the folder "
            "where it is now as output_dir=...; the same line then goes on from the last checkpoint."
        )
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _GONE):
        return TrainingError(
            "another process of this run has gone; what it said last tells why. "
            "The same line goes on from the last checkpoint."
        )
    if _disk_is_full(error):
        steps = run.steps()
        kept = f", from the checkpoint of step {steps[-1]}, which is whole" if steps else ""
        return TrainingError(
            f"{_full_place(error, run)} does not fit on its disk. Free some space; "
            f"the same line then goes on{kept}."
        )
    return _explain_file(error, run) if isinstance(error, OSError) else None


def _explain_file(error: OSError, run: RunFolder) -> TrainingError | None:
    """Word what keeps a file of the run folder from being read or written."""
    if not isinstance(error.filename, str) or not Path(error.filename).is_relative_to(run.path):
        return None
    place = str(error.filename2 or error.filename)  # a file that was to get the name of another
    if error.errno in _IN_THE_WAY:
        helps = "Move aside what stands there, or see who may write there"
    elif error.errno in _BROKEN:
        helps = f"See to its disk, or copy {run.path} to another one"
    else:
        return None
    return TrainingError(f"{place} cannot be used ({error.strerror}). {helps}; the same line then goes on.")


def _explain_not_finite(error: NotFiniteError, config: RunConfig, run: RunFolder) -> TrainingError:
    untrained = error.step <= 1
    if error.weights and untrained:
        places = [f"model.path={config.model.path}"]
        places += [f"adapter.path={config.adapter.path}"] if config.adapter.path else []
        return TrainingError(
            f"{' or '.join(places)} holds weights that are not finite: {error}. Fetch or convert it again."
        )
    helps = []
    dtype = _dtype_of(run)
    if dtype == Dtype.fp16:
        helps.append(f"model.dtype={_wider_dtype()}, since fp16 overflows early")
    if not untrained:
        helps.append(f"trainer.learning_rate below {config.trainer.learning_rate:g}")
    if untrained and dtype != Dtype.fp16:
        where = "it" if error.rows else "the held-out rows"
        helps.append(f"to mend or leave out what is in {where}, since no step has been taken yet")
    line = f"{error}. What usually helps: {'; or '.join(helps)}."
    if steps := run.steps():
        line += f" That makes another run: add name={config.name}-2; checkpoints up to step {steps[-1]} stay."
    return TrainingError(line)


def _dtype_of(run: RunFolder) -> str | None:
    """Return the number format that a run computes in."""
    try:
        environment = json.loads(run.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(environment.get("dtype"))


def _wider_dtype() -> Dtype:
    from gemma_ft.modeling.precision import read_device

    return Dtype.bf16 if read_device().bf16 else Dtype.fp32


def _disk_is_full(error: BaseException) -> bool:
    """Recognise a full disk, which torch's writer and Rust report in words of their own."""
    if isinstance(error, GemmaFTError):
        return False
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or any(words in str(error) for words in _FULL)


def _full_place(error: BaseException, run: RunFolder) -> str:
    """Name what did not fit: the file of the error, or else the place whose disk has nothing left.

    Before training most is written to the cache, and what was half-written there is gone already: of several
    disks it is the fullest then.
    """
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return error.filename
    cache, temporary = cache_folder(), Path(tempfile.gettempdir())
    said = {
        run.path: str(run.path),
        cache: f"{cache} (XDG_CACHE_HOME names another)",
        temporary: f"{temporary} (TMPDIR names another)",
    }
    free = {place: _free_bytes(place) for place in said}
    fullest = min(free, key=free.__getitem__)
    status = run.read_status()
    early = status is None or status.stage is Stage.data
    return said[fullest if early or free[fullest] < _NOTHING_LEFT else run.path]


def _free_bytes(place: Path) -> float:
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return math.inf
