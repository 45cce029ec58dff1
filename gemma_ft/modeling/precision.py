"""The precision policy: which number format and attention a device and a model allow, and why."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gemma_ft.config.schema import Attention, Dtype, ModelConfig
from gemma_ft.errors import ConfigError
from gemma_ft.families import Family

if TYPE_CHECKING:
    import torch

TORCH_NAMES = {Dtype.bf16: "bfloat16", Dtype.fp16: "float16", Dtype.fp32: "float32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What the policy needs to know of the device that trains."""

    kind: str
    """torch's name of the device type: cpu, cuda, mps or xpu."""
    name: str
    """What people call it."""
    bf16: bool
    """Whether it computes in bf16 natively."""
    flash_attention: bool
    """Whether FlashAttention 2 is installed and runs on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The resolved policy."""

    device: Device
    dtype: Dtype
    attention: Attention
    reasons: tuple[str, ...]
    """Why dtype and attention are what they are, a sentence each."""

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The number format as torch knows it."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_NAMES[self.dtype])
        return dtype


def read_device() -> Device:
    """Ask torch what this process would train on."""
    import torch

    if torch.cuda.is_available():
        ampere = torch.cuda.get_device_capability() >= (8, 0)
        return Device(
            kind="cuda",
            name=torch.cuda.get_device_name(),
            # the plain question is answered yes on cards that only emulate bf16
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
            flash_attention=ampere and find_spec("flash_attn") is not None,
        )
    return Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)


def resolve_precision(model: ModelConfig, family: Family, device: Device) -> Precision:
    """Settle `model.dtype` and `model.attention` for a device.

    Raises:
        ConfigError: What was asked for cannot work on this device or with this family.
    """
    dtype, dtype_reason = _resolve_dtype(model.dtype, family, device)
    attention, attention_reason = _resolve_attention(model.attention, dtype, family, device)
    return Precision(
        device=device, dtype=dtype, attention=attention, reasons=(dtype_reason, attention_reason)
    )


def _resolve_dtype(asked: Dtype, family: Family, device: Device) -> tuple[Dtype, str]:
    if asked is Dtype.fp16 and device.kind == "cpu":
        raise ConfigError(
            "model.dtype=fp16 cannot train on a CPU: there is no loss scaling. Use model.dtype=auto."
        )
    if asked is Dtype.bf16 and not device.bf16:
        raise ConfigError(
            f"model.dtype=bf16 is only emulated on {device.name}. Use model.dtype=auto, which takes fp16."
        )
    if asked is not Dtype.auto:
        return asked, f"dtype {asked}: as asked"
    if device.kind == "cpu":
        return Dtype.fp32, "dtype fp32: the fastest on a CPU"
    if device.bf16:
        return Dtype.bf16, f"dtype bf16: {device.name} computes in it natively"
    if not family.fp16_safe:
        return Dtype.fp32, f"dtype fp32: {device.name} has no bf16, and {family.name} leaves fp16's range"
    return Dtype.fp16, f"dtype fp16: {device.name} has no bf16"


def _resolve_attention(
    asked: Attention, dtype: Dtype, family: Family, device: Device
) -> tuple[Attention, str]:
    flash = device.flash_attention and dtype is not Dtype.fp32
    if asked is not Attention.auto:
        if asked not in family.attention:
            raise ConfigError(
                f"model.attention={asked} cannot compute {family.name}'s attention. "
                f"Use one of: auto, {', '.join(family.attention)}."
            )
        if asked is Attention.flash_attention_2 and not flash:
            raise ConfigError(
                "model.attention=flash_attention_2 needs the flash-attn package, bf16 or fp16 and a GPU "
                f"of compute capability 8.0; here: {device.name}, {dtype}. Use model.attention=auto."
            )
        return asked, f"attention {asked}: as asked"
    allowed = [name for name in family.attention if name != "flash_attention_2" or flash]
    best = Attention(allowed[0])
    return best, f"attention {best}: the best that {family.name} and {device.name} have here"
