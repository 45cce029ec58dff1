"""What this process trains on, as torch tells it."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import Any

from gemma_ft.errors import first_line
from gemma_ft.modeling.drivers import amd_driver, explain_unused, hidden_by, nvidia_driver, wants_cpu
from gemma_ft.modeling.imports import seldom_collected

_FLASH_CAPABILITY = (8, 0)
_BLACKWELL = (10, 0)
_FLASH_VERSION, _FLASH_VERSION_BLACKWELL = "2.6.2", "2.7.3"
"""flash-attn trains heads of 256 on every card since 2.5.5, trains soft-caps since 2.6.2, and has kernels for
Blackwell since 2.7.3, as its changelog and its builds say."""
_FLASH_ROCM = ("gfx90a", "gfx94", "gfx95")
"""MI200, MI300 and MI350: the AMD GPUs on which its ROCm build has backward passes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What the policy needs to know of the device that trains, and what a run records of it."""

    kind: str
    """torch's name of the device type: cpu, cuda (AMD's too), mps or xpu."""
    name: str
    """What people call it."""
    bf16: bool
    """Whether it computes in bf16, natively where torch tells."""
    flash_attention: bool
    """Whether FlashAttention 2 is installed and runs on it."""
    no_flash_attention: str = ""
    """Why it is not or does not."""
    rocm: bool = False
    """Whether it is an AMD GPU, which torch calls cuda too."""
    loss_scaling: bool = True
    """Whether torch can scale fp16's losses on it."""
    count: int = 1
    """Devices of this kind that torch sees."""
    memory: int | None = None
    """Bytes of its own, in all."""
    capability: tuple[int, int] | None = None
    """NVIDIA's compute capability."""
    architecture: str = ""
    """What kernels are built for: sm_80, gfx942."""
    runtime: str = ""
    """What torch was built for, with the version."""
    driver: str = ""
    """Version of the driver, where it tells."""
    passed_over: str = ""
    """A GPU of this machine that torch cannot use, why, and what to do."""

    @property
    def backend(self) -> str:
        """What computes: cpu, cuda, rocm, mps or xpu."""
        return "rocm" if self.rocm else self.kind


@seldom_collected()
def read_device() -> Device:
    """Ask torch what this process would train on.

    Where several processes of a machine train together it is what all of their devices can, so that each
    process resolves the same.
    """
    import torch

    if wants_cpu():
        return _read_cpu()
    if torch.cuda.is_available():
        return _weakest([read_gpu("cuda", index) for index in _own(torch.cuda.device_count())])
    if torch.xpu.is_available():
        return _weakest([read_gpu("xpu", index) for index in _own(torch.xpu.device_count())])
    if torch.backends.mps.is_available():
        return _read_mps()
    device = _read_cpu()
    unused = None if hidden_by() else explain_unused(torch.__version__, torch.version.cuda)
    return device if unused is None else replace(device, passed_over=f"{unused[0]}. Mend: {unused[1]}.")


def read_gpu(kind: str, index: int) -> Device:
    """Ask torch about one GPU that it sees.

    Args:
        kind: cuda or xpu.
        index: Its number among those in sight.
    """
    import torch

    if kind == "xpu":
        return _read_xpu(index)
    return _read_amd(index) if torch.version.hip else _read_nvidia(index)


def _read_cpu() -> Device:
    return Device(
        kind="cpu",
        name="CPU",
        bf16=True,
        flash_attention=False,
        no_flash_attention="it needs a GPU",
        loss_scaling=False,
        runtime="CPU",
    )


def _read_nvidia(index: int) -> Device:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    why = _why_no_flash_on_nvidia(name, (major, minor))
    return Device(
        kind="cuda",
        name=name,
        # torch's own question is answered yes on cards that only emulate bf16, unless asked not to
        bf16=major >= 8,
        flash_attention=not why,
        no_flash_attention=why,
        count=torch.cuda.device_count() or 1,
        memory=getattr(_told(torch.cuda.get_device_properties, index), "total_memory", None),
        capability=(major, minor),
        architecture=f"sm_{major}{minor}",
        runtime=f"CUDA {torch.version.cuda}",
        driver=nvidia_driver(),
    )


def _read_amd(index: int) -> Device:
    import torch

    properties = _told(torch.cuda.get_device_properties, index)
    architecture = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    why = _why_no_flash_on_amd(architecture)
    return Device(
        kind="cuda",
        name=torch.cuda.get_device_name(index),
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        flash_attention=not why,
        no_flash_attention=why,
        rocm=True,
        count=torch.cuda.device_count() or 1,
        memory=getattr(properties, "total_memory", None),
        architecture=architecture,
        runtime=f"ROCm {torch.version.hip}",
        driver=amd_driver(),
    )


def _read_xpu(index: int) -> Device:
    import torch

    properties = _told(torch.xpu.get_device_properties, index)
    return Device(
        kind="xpu",
        name=torch.xpu.get_device_name(index),
        bf16=bool(getattr(properties, "has_bfloat16_conversions", False)),
        flash_attention=False,
        no_flash_attention="on Intel GPUs transformers would fetch compiled code from the hub",
        loss_scaling=bool(getattr(properties, "has_fp64", False)),  # the scaler divides in fp64
        count=torch.xpu.device_count() or 1,
        memory=getattr(properties, "total_memory", None),
        runtime=f"XPU {getattr(torch.version, 'xpu', None) or ''}".strip(),
        driver=str(getattr(properties, "driver_version", "")),
    )


def _read_mps() -> Device:
    import torch

    mps = torch.backends.mps
    return Device(
        kind="mps",
        name=_told(getattr(mps, "get_name", None)) or "Apple GPU",
        bf16=mps.is_macos_or_newer(14, 0),  # emulated on M1 and M2, which torch does not tell
        flash_attention=False,
        no_flash_attention="it has no kernels for Apple GPUs",
        loss_scaling=torch.__version__ >= "2.8",
        memory=_told(torch.mps.recommended_max_memory),
        runtime=f"MPS, macOS {platform.mac_ver()[0]}",
    )


def _own(count: int) -> range:
    """Number the devices that the processes of this machine train on, one each."""
    return range(max(1, min(count, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def _weakest(devices: Sequence[Device]) -> Device:
    """Describe what all of several devices can."""
    oldest = min(devices, key=lambda device: device.capability or (0, 0))
    lacking = next((device for device in devices if not device.flash_attention), oldest)
    sizes = [device.memory for device in devices if device.memory is not None]
    return replace(
        oldest,
        name=" and ".join(dict.fromkeys(device.name for device in devices)),
        bf16=all(device.bf16 for device in devices),
        flash_attention=lacking.flash_attention,
        no_flash_attention=lacking.no_flash_attention,
        loss_scaling=all(device.loss_scaling for device in devices),
        memory=min(sizes, default=None),
    )


def _why_no_flash_on_nvidia(name: str, capability: tuple[int, int]) -> str:
    if capability < _FLASH_CAPABILITY:
        return f"it needs compute capability 8.0, and {name} has {capability[0]}.{capability[1]}"
    return _why_no_package(_FLASH_VERSION_BLACKWELL if capability >= _BLACKWELL else _FLASH_VERSION)


def _why_no_flash_on_amd(architecture: str) -> str:
    if not architecture.startswith(_FLASH_ROCM):
        return f"its ROCm build trains on MI200, MI300 and MI350, not on {architecture or 'this GPU'}"
    return _why_no_package(_FLASH_VERSION)


def _why_no_package(least: str) -> str:
    """Say why the flash-attn package cannot be used; a later generation has the same module, not the name."""
    from packaging.version import InvalidVersion, Version

    try:
        found = metadata.version("flash-attn")
        if Version(found) < Version(least):
            return f"flash-attn {found} is older than {least}, the first that trains every Gemma here"
        import_module("flash_attn")
    except metadata.PackageNotFoundError:
        return "the flash-attn package is not installed"
    except InvalidVersion:
        return f"flash-attn has no version that can be compared with {least}"
    except Exception as error:  # it is built for one torch, and whatever does not fit shows here
        return f"flash-attn {found} does not load ({first_line(error)}): install it again for this torch"
    return ""


def _told(ask: Callable[..., Any] | None, *about: int) -> Any:
    """Ask for what a run can do without; None where the driver does not tell."""
    try:
        return ask(*about) if ask else None
    except Exception:
        return None
