"""torch, and the devices that it sees or should see."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress

from gemma_ft.diagnosis.finding import Finding, Level, first_line, in_gib
from gemma_ft.modeling.devices import Device, read_device, read_gpu
from gemma_ft.modeling.drivers import explain_unused, has_amd_compute, hidden_by


def find_torch() -> Iterator[Finding]:
    """Say what torch is built for, and of a GPU in this machine that it does not use."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen = torch.cuda.is_available()
    build = _build()
    yield Finding(
        topic="torch",
        says=f"torch {torch.__version__}, built for {build}",
        facts={"torch": str(torch.__version__), "build": build, "cuda_available": seen},
    )
    if not seen:
        yield from _find_unused(" ".join(str(warning.message).split(". ")[0] for warning in said[:1]))


def _build() -> str:
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if getattr(torch.version, "xpu", None):
        return f"XPU {torch.version.xpu}"
    return "MPS" if torch.backends.mps.is_built() else "CPUs only"


def _find_unused(told: str) -> Iterator[Finding]:
    import torch

    unused = explain_unused(str(torch.__version__), torch.version.cuda, told)
    if unused is not None:
        on_purpose = torch.version.cuda is not None and hidden_by()
        yield Finding(
            topic="torch",
            level=Level.warning if on_purpose else Level.error,
            says=unused[0],
            cure=unused[1],
        )
    elif shutil.which("nvidia-smi"):
        yield Finding(
            topic="torch",
            level=Level.warning,
            says="nvidia-smi is installed, but names no GPU",
            cure="run nvidia-smi: what it prints says whether the driver is loaded",
        )
    if has_amd_compute() and not torch.version.hip:
        yield Finding(
            topic="torch",
            level=Level.note,
            says=f"AMD's driver offers a GPU, but torch {torch.__version__} is not built for ROCm",
            cure="choose ROCm at pytorch.org, unless it is a processor's own graphics",
        )


def find_devices() -> Iterator[Finding]:
    """List what torch sees, with what each device can."""
    trains = read_device()
    if trains.kind == "cpu":
        yield Finding(
            topic="devices",
            level=Level.note,
            says="no GPU: a CPU trains tiny models (recipe=quickstart); for a 2B or 7B take a GPU",
            facts=_facts(trains, None),
        )
        return
    if trains.kind == "mps":
        yield Finding(topic="devices", says=_say(trains, None), facts=_facts(trains, None))
        return
    for index in range(trains.count):
        try:
            device = read_gpu(trains.kind, index)
        except Exception as error:
            says = f"GPU {index} cannot be asked ({first_line(error)})"
            yield Finding(topic="devices", level=Level.error, says=says, cure="run nvidia-smi, or reboot")
            continue
        free = _free(device, index)
        yield Finding(topic="devices", says=f"GPU {index}: {_say(device, free)}", facts=_facts(device, free))
        yield from _find_kernels(device)


def _say(device: Device, free: int | None) -> str:
    memory = "memory unknown" if device.memory is None else in_gib(device.memory)
    memory += "" if free is None else f" ({in_gib(free)} free)"
    kind = " ".join(filter(None, (device.architecture, device.runtime)))
    driver = f", driver {device.driver}" if device.driver else ""
    flash = (
        "FlashAttention 2" if device.flash_attention else f"no FlashAttention 2: {device.no_flash_attention}"
    )
    return f"{device.name}, {memory}, {kind}{driver}; {'bf16' if device.bf16 else 'no bf16'}; {flash}"


def _facts(device: Device, free: int | None) -> dict[str, object]:
    return {
        "name": device.name,
        "kind": device.backend,
        "memory_bytes": device.memory,
        "free_bytes": free,
        "architecture": device.architecture or None,
        "bf16": device.bf16,
        "flash_attention": device.flash_attention,
        "runtime": device.runtime,
        "driver": device.driver or None,
    }


def _free(device: Device, index: int) -> int | None:
    import torch

    with suppress(Exception):  # some drivers do not tell
        return int((torch.xpu if device.kind == "xpu" else torch.cuda).mem_get_info(index)[0])
    return None


def _find_kernels(device: Device) -> Iterator[Finding]:
    """See whether this torch was built for a GPU at all; newer builds leave old generations out.

    Code for sm_80 runs on every sm_8x, and what is kept as compute_80 is compiled for any later one.
    """
    import torch

    if device.capability is None:
        return
    major, minor = device.capability
    built = torch.cuda.get_arch_list()
    parts = [name.partition("_") for name in built]
    versions = [(kind, divmod(int("".join(filter(str.isdigit, number))), 10)) for kind, _, number in parts]
    runs = any(
        (kind == "sm" and known[0] == major and known[1] <= minor)
        or (kind == "compute" and known <= device.capability)
        for kind, known in versions
    )
    if versions and not runs:
        yield Finding(
            topic="devices",
            level=Level.error,
            says=f"torch {torch.__version__} has no code for {device.architecture} ({device.name})",
            cure=f"install an older torch, or one for another CUDA; this one has {' '.join(built)}",
        )
