"""What a run was run on: the content of environment.json."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gemma_ft.modeling.precision import Precision
from gemma_ft.training.layout import Layout

_PACKAGES = (
    "gemma_ft",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "wandb",
    "tensorboard",
    "trackio",
    "hydra-core",
)


def describe_environment(precision: Precision, layout: Layout) -> dict[str, Any]:
    """Collect versions, the device, the resolved precision and the revision of this code."""
    device = precision.device
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
        "device": device.name,
        "device_kind": device.backend,
        "device_count": device.count,
        "device_memory_bytes": device.memory,
        "device_architecture": device.architecture or None,
        "compute_capability": ".".join(map(str, device.capability)) if device.capability else None,
        "runtime": device.runtime or None,
        "driver": device.driver or None,
        "parallel": layout.method.value,
        "nodes": layout.nodes,
        "world_size": layout.world_size,
        "gradient_accumulation_steps": layout.accumulation,
        "dtype": precision.dtype.value,
        "attention": precision.attention.value,
        "reasons": list(precision.reasons),
        "untested": precision.untested or None,
        "warnings": list(precision.warnings),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Return the commit of a checkout of this project; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
