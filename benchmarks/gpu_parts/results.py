"""What was measured, as JSON: one entry a device, written whole after each part."""

import json
import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "triton",
    "flash_attn",
)
_ROOT = Path(__file__).resolve().parents[2]


def describe(device: str) -> dict[str, Any]:
    """Return device, versions and revision; asks torch, so in a process that does nothing else."""
    import torch

    import gemma_ft

    about: dict[str, Any] = {
        "device": "CPU",
        "gpus": 0,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {"gemma_ft": gemma_ft.__version__, **{name: _version(name) for name in _PACKAGES}},
        "git_revision": _revision(),
    }
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "device": torch.cuda.get_device_name(),
            "gpus": torch.cuda.device_count(),
            "gpu_memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "driver": _driver(),
        }
    return about


def record(file: Path, about: dict[str, Any], name: str, outcome: dict[str, Any]) -> None:
    """Put the outcome of a part into the results, among those of its device.

    A part that was left out does not take the place of one that was measured before.
    """
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    entry = results.setdefault(about["device"], {"parts": {}})
    if outcome["status"] != "left out" or name not in entry["parts"]:
        entry["parts"][name] = outcome | {"date": about["date"], "git_revision": about["git_revision"]}
    results[about["device"]] = {**about, "parts": entry["parts"]}
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    return _first_line(["git", "rev-parse", "HEAD"])


def _driver() -> str | None:
    return _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None
