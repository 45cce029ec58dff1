"""The precision policy, against devices that are described, not present."""

import pytest

from gemma_ft.config.schema import Attention, Dtype, ModelConfig
from gemma_ft.errors import ConfigError
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.precision import Device, resolve_precision

GEMMA_1, GEMMA_2, GEMMA_3 = FAMILIES
CPU = Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)
T4 = Device(kind="cuda", name="Tesla T4", bf16=False, flash_attention=False)
L4 = Device(kind="cuda", name="NVIDIA L4", bf16=True, flash_attention=False)
H100 = Device(kind="cuda", name="NVIDIA H100", bf16=True, flash_attention=True)


@pytest.mark.parametrize(
    ("device", "family", "dtype", "attention"),
    [
        (CPU, GEMMA_1, "fp32", "sdpa"),
        (CPU, GEMMA_2, "fp32", "eager"),
        (T4, GEMMA_1, "fp16", "sdpa"),
        (T4, GEMMA_2, "fp16", "eager"),
        (T4, GEMMA_3, "fp32", "sdpa"),
        (L4, GEMMA_1, "bf16", "sdpa"),
        (L4, GEMMA_3, "bf16", "sdpa"),
        (H100, GEMMA_1, "bf16", "flash_attention_2"),
        (H100, GEMMA_2, "bf16", "flash_attention_2"),
    ],
)
def test_auto_takes_the_best_that_device_and_family_allow(device, family, dtype, attention):
    precision = resolve_precision(ModelConfig(), family, device)
    assert (precision.dtype, precision.attention) == (dtype, attention)
    assert len(precision.reasons) == 2


def test_what_was_asked_for_is_kept():
    model = ModelConfig(dtype=Dtype.bf16, attention=Attention.eager)
    precision = resolve_precision(model, GEMMA_1, CPU)
    assert (precision.dtype, precision.attention) == (Dtype.bf16, Attention.eager)


def test_flash_attention_is_not_taken_for_fp32():
    precision = resolve_precision(ModelConfig(dtype=Dtype.fp32), GEMMA_1, H100)
    assert precision.attention is Attention.sdpa


@pytest.mark.parametrize(
    ("model", "family", "device", "message"),
    [
        (ModelConfig(dtype=Dtype.fp16), GEMMA_1, CPU, "model.dtype=fp16 cannot train on a CPU"),
        (ModelConfig(dtype=Dtype.bf16), GEMMA_1, T4, "only emulated on Tesla T4. Use model.dtype=auto"),
        (ModelConfig(attention=Attention.sdpa), GEMMA_2, H100, "sdpa cannot compute Gemma 2's attention"),
        (ModelConfig(attention=Attention.flash_attention_2), GEMMA_1, CPU, "needs the flash-attn package"),
    ],
)
def test_what_cannot_work_is_refused_with_the_cure(model, family, device, message):
    with pytest.raises(ConfigError, match=message):
        resolve_precision(model, family, device)
