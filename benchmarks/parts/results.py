"""Results: what was measured on and with, as JSON and as a table to read."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def describe_machine() -> dict[str, Any]:
    """Say what this was measured on, and when."""
    import psutil

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "git_revision": _revision(),
    }


def _cpu_name() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def _revision() -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        words = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return None


def versions_of(python: str | Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that an environment has, asked of its own Python."""
    ask = (
        "import sys, json; from importlib.metadata import version, PackageNotFoundError\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    words = [str(python or sys.executable), "-c", ask, *packages]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(said)
    return found


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; None is an empty cell."""
    lines = [list(heads), ["---", *["---:"] * (len(heads) - 1)]]
    lines += [["" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def describe_in_words(results: dict[str, Any]) -> str:
    """Return a sentence of the machine and one of the versions of each side."""
    machine = results["machine"]
    lines = [
        f"Measured {machine['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_gib']} GiB, {machine['os']}, "
        f"revision {machine['git_revision']}."
    ]
    for side, versions in results.get("versions", {}).items():
        listed = ", ".join(f"{name} {number}" for name, number in versions.items())
        lines.append(f"- {side}: {listed}")
    return "\n".join(lines) + "\n"


def write_results(name: str, results: dict[str, Any], page: str, folder: Path = RESULTS) -> None:
    """Write NAME.json, and NAME.md with the tables, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / f"{name}.md", page)


def write_whole(file: Path, text: str) -> None:
    """Write a text beside its place, then put it there."""
    beside = file.with_name(f".{file.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
