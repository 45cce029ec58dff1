"""Safetensors on disk: that what was written is there, whole and finite."""

import os
import shutil
import struct
from pathlib import Path

from gemma_ft.errors import TrainingError


def check_weights(folder: Path) -> None:
    """Open every safetensors file of a folder and look at every tensor.

    Raises:
        TrainingError: There is no tensor, a file is cut, or a value is not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    count += 1
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        raise TrainingError(
                            f"{file} holds non-finite values, in {name}. Lower trainer.learning_rate."
                        )
        except (SafetensorError, struct.error, OSError) as error:
            raise TrainingError(f"{file} was not written whole ({error}). Is the disk full?") from error
    if not count:
        raise TrainingError(
            f"{folder} was written without any tensor. Please report this with the run's config.yaml."
        )


def flush_folder(folder: Path) -> None:
    """Force the files of a folder, and the names in it, onto the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_entries(path)
        elif path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_entries(folder)


def sync_entries(folder: Path) -> None:
    """Force the names in a folder onto the disk."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish_folder(beside: Path, final: Path) -> None:
    """Give a whole folder its final name, in place of one that was there.

    Killed anywhere in between, it leaves the old one, the new one or none under that name, never a part.
    """
    flush_folder(beside)
    if final.exists():
        _hide(final)
    beside.rename(final)
    sync_entries(final.parent)
    _delete_hidden(final)


def discard_folder(folder: Path) -> None:
    """Delete a folder; killed in between, it leaves nothing of it under its name."""
    _hide(folder)
    _delete_hidden(folder)


def _hide(folder: Path) -> None:
    _delete_hidden(folder)
    folder.rename(_hidden(folder))


def _delete_hidden(folder: Path) -> None:
    """Delete what was hidden of a folder, perhaps by a process that was killed."""
    if _hidden(folder).exists():
        shutil.rmtree(_hidden(folder))


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
