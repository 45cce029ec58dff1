"""Every question to this machine, in order; what cannot be answered hides nothing else."""

from collections.abc import Callable, Iterator

from gemma_ft.diagnosis.accelerators import find_devices, find_torch
from gemma_ft.diagnosis.accounts import find_hub, find_wandb
from gemma_ft.diagnosis.choices import find_parallel, find_precision, find_quantization
from gemma_ft.diagnosis.finding import Finding, Level, first_line
from gemma_ft.diagnosis.machine import find_disks, find_memory, find_processors
from gemma_ft.diagnosis.packages import (
    asked_for,
    find_optional,
    find_packages,
    find_python,
    installed_version,
)

_Probe = tuple[str, Callable[[], Iterator[Finding]]]

_FIRST: tuple[_Probe, ...] = (
    ("python", find_python),
    ("packages", find_packages),
    ("optional", find_optional),
)
_WITH_TORCH: tuple[_Probe, ...] = (
    ("torch", find_torch),
    ("devices", find_devices),
    ("precision", find_precision),
    ("quantization", find_quantization),
    ("parallel", find_parallel),
)
_LAST: tuple[_Probe, ...] = (
    ("processor", find_processors),
    ("memory", find_memory),
    ("disk", find_disks),
    ("hub", find_hub),
    ("wandb", find_wandb),
)


def examine() -> list[Finding]:
    """Ask everything, and return what was found."""
    broken = _why_torch_does_not_load()
    middle = [broken] if broken else list(_answers(_WITH_TORCH))
    return [*_answers(_FIRST), *middle, *_answers(_LAST)]


def _answers(probes: tuple[_Probe, ...]) -> Iterator[Finding]:
    for topic, probe in probes:
        try:
            yield from probe()
        except Exception as error:
            yield Finding(
                topic=topic, level=Level.warning, says=f"cannot be told on this machine: {first_line(error)}"
            )


def _why_torch_does_not_load() -> Finding | None:
    try:
        import torch  # noqa: F401
    except Exception as error:  # a missing library shows as OSError, a half-installed one as anything
        missing = installed_version("torch") is None
        unknown = ", ".join(topic for topic, _ in _WITH_TORCH[1:])
        told = "is not installed" if missing else f"does not load ({first_line(error)})"
        return Finding(
            topic="torch",
            level=Level.error,
            says=f"torch {told}, so {unknown} are not known",
            cure=f"pip install {'' if missing else '--force-reinstall '}{asked_for('torch')}",
        )
    return None
