"""What drivers tell of the GPUs in this machine, and what keeps them from use."""

import os
import re
import shutil
import subprocess
from pathlib import Path

_YES = ("1", "true", "yes", "y", "t", "on")
_NVIDIA = Path("/proc/driver/nvidia/version")
_AMD = Path("/sys/module/amdgpu/version")
_AMD_COMPUTE = Path("/dev/kfd")
_SECONDS = 20
"""How long nvidia-smi may take; on a machine with eight GPUs that sleep it takes several seconds."""


def nvidia_driver() -> str:
    """Read the version of NVIDIA's driver; empty where none is loaded, or it does not tell."""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _read(_NVIDIA))
    return found[1] if found else ""


def amd_driver() -> str:
    """Read the version of AMD's driver; empty where it is the kernel's own."""
    return _read(_AMD).strip()


def has_amd_compute() -> bool:
    """Tell whether AMD's driver offers a device that computes, which may be a processor's own graphics."""
    return _AMD_COMPUTE.exists()


def nvidia_gpus() -> tuple[str, ...]:
    """Ask NVIDIA's driver for the names of its GPUs; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def is_on(variable: str) -> bool:
    """Tell whether a variable of the environment says yes, in the words that accelerate takes for it."""
    return os.environ.get(variable, "").lower() in _YES


def wants_cpu() -> bool:
    """Tell whether the launcher asks to leave GPUs alone."""
    return is_on("ACCELERATE_USE_CPU")


def hidden_by() -> str:
    """Name the variable that keeps every NVIDIA GPU from torch; empty where none does."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    hides = value is not None and value.strip() in ("", "-1", "NoDevFiles", "none")
    return f"CUDA_VISIBLE_DEVICES={value}" if hides else ""


def explain_unused(version: str, cuda: str | None, told: str = "") -> tuple[str, str] | None:
    """Say why torch uses no NVIDIA GPU of this machine, and what to do; None where there is none.

    Args:
        version: torch's own.
        cuda: The CUDA that torch was built for.
        told: What torch said when it looked for GPUs.
    """
    gpus = nvidia_gpus()
    if not gpus:
        return None
    names = ", ".join(dict.fromkeys(gpus))
    if cuda is None:
        public = version.partition("+")[0]
        return (
            f"{names} is in this machine, but torch {version} is built without CUDA",
            f"pip install --force-reinstall torch=={public} (on Windows choose CUDA at pytorch.org)",
        )
    if hidden := hidden_by():
        return f"{names} is in this machine, but {hidden} hides it", "unset CUDA_VISIBLE_DEVICES"
    driver = nvidia_driver() or "of unknown version"
    return (
        f"{names} is in this machine, but torch {version} for CUDA {cuda} cannot use it with the driver "
        f"{driver}" + (f" ({told})" if told else ""),
        f"update NVIDIA's driver, or install a torch for a CUDA older than {cuda}",
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
