"""Checkpoints of a run: checked before they get their name, chosen whole, and not kept for ever.

Beside what transformers writes stands files.json, the size and CRC-32 of every file, written last. A folder
that does not match it is torn, and so is one that has none.
"""

import json
import logging
import shutil
import zipfile
import zlib
from pathlib import Path

from gemma_ft.errors import RunError, TrainingError
from gemma_ft.modeling.weights import check_weights, discard_folder, publish_folder
from gemma_ft.runs import RunFolder
from gemma_ft.training.agreement import told_by_writer
from gemma_ft.training.connections import among_others

logger = logging.getLogger("gemma_ft")

SHARDED_WEIGHTS, SHARDED_OPTIMIZER = "weights", "optimizer"
"""Folders in a checkpoint of a sharded run, with safetensors of each process."""

_MANIFEST = "files.json"
_CHUNK = 1 << 24


def newest_whole(run: RunFolder, *, writes: bool) -> Path | None:
    """Find the newest checkpoint that is whole, and say which ones are not.

    Processes that are connected hear what the writing one has found, so all of them must call it.

    Args:
        run: Whose checkpoints.
        writes: Whether this process may tidy up: what a kill has left is deleted, and a torn checkpoint moves
            to step-N.torn.
    """
    step = _newest_whole_step(run, writes=writes) if writes or not among_others() else None
    step = told_by_writer(step)
    return None if step is None else run.step_folder(step)


def _newest_whole_step(run: RunFolder, *, writes: bool) -> int | None:
    if writes:
        _sweep(run)
    steps = run.steps()
    for step in reversed(steps):
        folder = run.step_folder(step)
        if (reason := torn_because(folder)) is None:
            return step
        logger.warning("checkpoint %s is torn and is left out: %s", folder, reason)
        if writes and folder.exists():
            _set_torn_aside(folder)
    if steps:
        logger.warning("no checkpoint of %s is whole: training starts anew", run.path)
    return None


def _sweep(run: RunFolder) -> None:
    """Delete what a killed process was writing or deleting; its names are hidden ones."""
    for path in run.checkpoints.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _set_torn_aside(folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.torn")
    if aside.exists():
        discard_folder(aside)
    folder.rename(aside)


def torn_because(folder: Path) -> str | None:
    """Compare a checkpoint with what was written; None if it is whole, else what is wrong with it."""
    try:
        listed = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["crc32"]) for name, entry in listed.items()}
    except OSError:
        return f"it has no {_MANIFEST}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{_MANIFEST} cannot be read"
    for name, (size, checksum) in files.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} of {size} bytes"
            if _checksum(folder / name) != checksum:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None if files else f"{_MANIFEST} lists nothing"


def check_form(checkpoint: Path, *, sharded: bool) -> None:
    """Check that a checkpoint is in shards where the run is; `parallel=auto` leaves that to a launcher.

    Raises:
        RunError: It is not, or the other way about.
    """
    if (checkpoint / SHARDED_WEIGHTS).is_dir() != sharded:
        saved, start = ("whole", "without") if sharded else ("in shards", "with")
        raise RunError(
            f"{checkpoint} was saved {saved}. Start {start} a launcher that asks for FSDP, as before."
        )


def publish_checkpoint(written: Path, run: RunFolder, step: int) -> None:
    """Check a checkpoint that transformers has written, and give it its name.

    Raises:
        TrainingError: It is not whole, or a weight is not finite.
    """
    (written / "training_args.bin").unlink(missing_ok=True)  # pickled, and read by nobody
    shards, states = written / SHARDED_WEIGHTS, written / SHARDED_OPTIMIZER
    check_weights(shards if shards.is_dir() else written)
    if states.is_dir():
        check_weights(states)
    check_states(written)
    files = sorted(path for path in written.rglob("*") if path.is_file())
    listed = {
        path.relative_to(written).as_posix(): {"bytes": path.stat().st_size, "crc32": _checksum(path)}
        for path in files
    }
    (written / _MANIFEST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    run.flush_metrics()
    publish_folder(written, run.step_folder(step))
    for torn in run.checkpoints.glob("step-*.torn"):
        if torn.name <= f"{run.step_folder(step).name}.torn":
            discard_folder(torn)


def check_states(folder: Path) -> None:
    """Read back the JSON files of a checkpoint and the archives of its optimizer, schedule and random states.

    Raises:
        TrainingError: One was not written whole.
    """
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path) as archive:
                    if (part := archive.testzip()) is not None:
                        raise zipfile.BadZipFile(f"{part} differs from what was meant")
        except (ValueError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} was not written whole ({error}). Is the disk full?") from error


def rotate(run: RunFolder, *, kept: int | None, saved: int, best: int | None) -> None:
    """Delete checkpoints older than the newest ones.

    Args:
        run: Whose checkpoints.
        kept: How many stay; None keeps all.
        saved: The step that was just saved, which is whole; what claims to be later is not counted.
        best: A step that stays whatever its age.
    """
    if kept is None:
        return
    for step in [step for step in run.steps() if step <= saved][:-kept]:
        if step != best:
            discard_folder(run.step_folder(step))


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
