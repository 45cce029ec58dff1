"""Processors, memory and disks."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gemma_ft.cache import cache_folder
from gemma_ft.diagnosis.finding import Finding, Level, in_gib

_GROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT = 2**60
"""Bytes; what the first version of control groups writes where there is no limit is near 2**63."""
_LITTLE = 2 * 2**30
_HINT = "a 2B takes about 5 GB in the hub's cache and again as an export, a 7B 17 GB"


def find_processors() -> Iterator[Finding]:
    """Count the threads that this process may use."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        topic="processor",
        says=f"{mine} of {os.cpu_count()} threads may be used"
        + (f"; OMP_NUM_THREADS={threads}" if threads else ""),
        facts={"threads": mine, "OMP_NUM_THREADS": threads},
    )


def find_memory() -> Iterator[Finding]:
    """Say how much memory there is, and how much of it this process may have."""
    import psutil  # type: ignore[import-untyped]

    memory, limit = psutil.virtual_memory(), memory_limit()
    capped = "" if limit is None else f"; at most {in_gib(limit)} for this control group"
    yield Finding(
        topic="memory",
        says=f"{in_gib(memory.total)}, of which {in_gib(memory.available)} is free{capped}",
        facts={"total_bytes": memory.total, "available_bytes": memory.available, "limit_bytes": limit},
    )


def memory_limit() -> int | None:
    """Read the least limit of this process's control groups, of either version, in bytes."""
    limits = []
    for line in _read(_MINE).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            limits += _limits_along(_GROUPS, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_along(_GROUPS / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits_along(root: Path, path: str, name: str) -> list[int]:
    """Read the limits of a group and of all above it; in a container the group may be the root."""
    inner = root / path.strip("/")
    folders = [inner, *(folder for folder in inner.parents if folder.is_relative_to(root))]
    texts = [_read(folder / name).strip() for folder in folders]
    return [int(text) for text in texts if text.isdigit() and int(text) < _NO_LIMIT]


def find_disks() -> Iterator[Finding]:
    """Say what is free where a run writes."""
    places = (
        ("run folders", Path("outputs").absolute(), "output_dir=FOLDER"),
        ("the hub's cache", hub_cache(), "export HF_HOME=FOLDER"),
        ("our cache", cache_folder(), "export XDG_CACHE_HOME=FOLDER"),
        ("temporary files", Path(tempfile.gettempdir()), "export TMPDIR=FOLDER"),
    )
    for what, folder, elsewhere in places:
        yield _find_disk(what, folder, elsewhere)


def _find_disk(what: str, folder: Path, elsewhere: str) -> Finding:
    import shutil

    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    level = Level.ok if writable and free >= _LITTLE else Level.warning
    trouble = "" if writable else ", which cannot be written"
    if writable and level is Level.warning:
        trouble = f": {_HINT}"
    return Finding(
        topic="disk",
        level=level,
        says=f"{what}: {in_gib(free)} free in {folder}{trouble}",
        cure=elsewhere if level is Level.warning else "",
        facts={"place": what, "folder": str(folder), "free_bytes": free, "writable": writable},
    )


def hub_cache() -> Path:
    """Return where the hub's files are kept; by its own rules where huggingface_hub is not installed."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return Path(HF_HUB_CACHE)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
