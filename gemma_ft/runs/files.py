"""The small files of a run folder: read with one line for what is wrong, written whole or not at all."""

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemma_ft.errors import RunError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: The file is not readable JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is not readable JSON ({error}). Restore it, or start anew with --overwrite."
        ) from error
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Write out a JSON object."""
    return json.dumps(content, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; two threads may do so at once."""
    thread = threading.current_thread()
    own = "" if thread is threading.main_thread() else f".{thread.ident}"
    beside = path.with_name(f".{path.name}{own}.partial")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_in_place(path: Path, text: str) -> bool:
    """Overwrite a small file within the block that it has on the disk, in one write.

    Blanks fill it up to its old size, so whoever reads it meets the old text or the new. Returns whether that
    was possible.
    """
    try:
        handle = os.open(path, os.O_WRONLY)
        try:
            content = text.encode().ljust(os.fstat(handle).st_size)
            return os.write(handle, content) == len(content)
        finally:
            os.close(handle)
    except OSError:
        return False
