"""The precision policy: which number format and attention a device and a model allow, and why."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_ft.config.schema import Attention, Dtype, ModelConfig, QuantizationMethod
from gemma_ft.errors import ConfigError
from gemma_ft.families import Family
from gemma_ft.modeling.devices import Device, read_device

if TYPE_CHECKING:
    import torch

__all__ = [
    "Device",
    "Precision",
    "check_quantization",
    "read_device",
    "resolve_precision",
    "why_not_quantized",
]

TORCH_NAMES = {Dtype.bf16: "bfloat16", Dtype.fp16: "float16", Dtype.fp32: "float32"}

_NEVER_RUN = {
    "cuda": "NVIDIA GPUs",
    "rocm": "AMD GPUs (ROCm)",
    "xpu": "Intel GPUs (XPU)",
    "mps": "Apple GPUs (MPS)",
}
"""Backends on which none of this has been run; take one out once `tests/gpu` has passed on it."""
_LEAST_CAPABILITY = (6, 0)
_AMD_QUANTIZED = (
    "gfx101",
    "gfx103",
    "gfx110",
    "gfx115",
    "gfx120",
    "gfx125",
    "gfx908",
    "gfx90a",
    "gfx94",
    "gfx95",
)
"""What bitsandbytes 0.50 lists among its requirements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The resolved policy."""

    device: Device
    dtype: Dtype
    attention: Attention
    reasons: tuple[str, ...]
    """Why dtype and attention are what they are, a sentence each."""
    untested: str = ""
    """Where none of this was ever run: the kind of device."""
    warnings: tuple[str, ...] = ()
    """What works but is likely not meant, with what to do."""

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The number format as torch knows it."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_NAMES[self.dtype])
        return dtype


def resolve_precision(model: ModelConfig, family: Family, device: Device) -> Precision:
    """Settle `model.dtype` and `model.attention` for a device.

    Raises:
        ConfigError: What was asked for cannot work on this device or with this family.
    """
    dtype, dtype_reason = _resolve_dtype(model.dtype, family, device)
    attention, attention_reason = _resolve_attention(model.attention, dtype, family, device)
    kind = _NEVER_RUN.get(device.backend)
    return Precision(
        device=device,
        dtype=dtype,
        attention=attention,
        reasons=(dtype_reason, attention_reason),
        untested=f"not tested on {kind}: the policy follows what torch and the libraries document"
        if kind
        else "",
        warnings=tuple(_warnings(dtype, family, device)),
    )


def _resolve_dtype(asked: Dtype, family: Family, device: Device) -> tuple[Dtype, str]:
    best, reason = _best_dtype(family, device)
    if asked is Dtype.fp16 and device.kind == "cpu":
        raise ConfigError(
            "model.dtype=fp16 cannot train on a CPU: there is no loss scaling. Use model.dtype=auto."
        )
    if asked is Dtype.fp16 and not device.loss_scaling:
        raise ConfigError(
            f"model.dtype=fp16 cannot train on {device.name}: this torch has no loss scaling for it. "
            f"Use model.dtype=auto, which takes {best}."
        )
    if asked is Dtype.bf16 and not device.bf16:
        raise ConfigError(
            f"model.dtype=bf16 is only emulated on {device.name}. Use model.dtype=auto, which takes {best}."
        )
    return (best, reason) if asked is Dtype.auto else (asked, f"dtype {asked}: as asked")


def _best_dtype(family: Family, device: Device) -> tuple[Dtype, str]:
    if device.kind == "cpu":
        return Dtype.fp32, "dtype fp32: every CPU computes in it natively"
    if device.bf16:
        knows = "computes in it natively" if device.backend == "cuda" else "has it, as torch reports"
        return Dtype.bf16, f"dtype bf16: {device.name} {knows}"
    if device.kind != "cuda":
        return Dtype.fp32, f"dtype fp32: {device.name} has no bf16, as torch reports"
    if not family.fp16_safe:
        return Dtype.fp32, f"dtype fp32: {device.name} has no bf16, and {family.name} leaves fp16's range"
    return Dtype.fp16, f"dtype fp16: {device.name} has no bf16"


def _resolve_attention(
    asked: Attention, dtype: Dtype, family: Family, device: Device
) -> tuple[Attention, str]:
    flash = device.flash_attention and dtype is not Dtype.fp32
    if asked is not Attention.auto:
        _check_attention(asked, dtype, family, device, flash=flash)
        return asked, f"attention {asked}: as asked"
    takes_flash = flash and not device.rocm
    allowed = [name for name in family.attention if name != "flash_attention_2" or takes_flash]
    best = Attention(allowed[0])
    reason = f"attention {best}: the best that {family.name} and {device.name} have here"
    if not takes_flash:
        reason += f"; no flash_attention_2: {_why_no_flash(dtype, device)}"
    if "sdpa" not in family.attention:
        reason += "; no sdpa: it leaves out the soft-caps"
    return best, reason


def _check_attention(asked: Attention, dtype: Dtype, family: Family, device: Device, *, flash: bool) -> None:
    if asked not in family.attention:
        raise ConfigError(
            f"model.attention={asked} cannot compute {family.name}'s attention. "
            f"Use one of: auto, {', '.join(family.attention)}."
        )
    if asked is Attention.flash_attention_2 and not flash:
        raise ConfigError(
            "model.attention=flash_attention_2 needs the flash-attn package, bf16 or fp16 and a GPU "
            f"of compute capability 8.0; here: {device.name}, {dtype} ({_why_no_flash(dtype, device)}). "
            "Use model.attention=auto."
        )


def _why_no_flash(dtype: Dtype, device: Device) -> str:
    if not device.flash_attention:
        return device.no_flash_attention or "it is not installed, or does not run here"
    if dtype is Dtype.fp32:
        return "it computes in bf16 and fp16 only"
    return "its ROCm build is taken only where model.attention asks for it, since it was never run here"


def _warnings(dtype: Dtype, family: Family, device: Device) -> list[str]:
    found = []
    if dtype is Dtype.fp16 and not family.fp16_safe:
        found.append(
            f"model.dtype=fp16: {family.name}'s activations grow beyond 65504, the largest number of fp16, "
            "so the loss is likely to become inf or nan. Use model.dtype=auto, which takes "
            f"{_best_dtype(family, device)[0]} here."
        )
    if device.backend in _NEVER_RUN and device.backend != "cuda":
        found.append(
            f"{device.name}: training on {_NEVER_RUN[device.backend]} was never tested. "
            "Compare the first losses with those of ACCELERATE_USE_CPU=true, which trains on the CPU."
        )
    if device.passed_over:
        found.append(f"training on the CPU: {device.passed_over}")
    return found


def check_quantization(method: QuantizationMethod, optim: str, device: Device) -> None:
    """Refuse what bitsandbytes cannot do on a device, before weights are fetched.

    Args:
        method: Storage of the frozen weights.
        optim: `trainer.optim`.
        device: What trains.

    Raises:
        ConfigError: It has no kernels for this, with what to use instead.
    """
    if why := why_not_quantized(method, device):
        raise ConfigError(f"quantization={method} cannot work here: {why}. Use quantization=none.")
    if device.kind == "mps" and optim.endswith("8bit") and not optim.startswith("adamw_torch"):
        raise ConfigError(
            f"trainer.optim={optim} has no kernels for Apple GPUs in bitsandbytes. "
            "Use trainer.optim=adamw_torch."
        )


def why_not_quantized(method: QuantizationMethod, device: Device) -> str:
    """Say why bitsandbytes 0.50 cannot store weights so on a device; empty where it can.

    Source: the hardware that its own description of the package asks for.
    """
    if method is QuantizationMethod.none:
        return ""
    if device.capability is not None and device.capability < _LEAST_CAPABILITY:
        return f"bitsandbytes needs compute capability 6.0, and {device.name} has {device.architecture}"
    if device.rocm and device.architecture and not device.architecture.startswith(_AMD_QUANTIZED):
        return f"bitsandbytes has no kernels for {device.architecture} ({device.name})"
    if device.kind == "mps" and not device.bf16:
        return "bitsandbytes needs macOS 14"
    return ""
