"""The precision policy, against devices that are described, not present."""

import pytest

from gemma_ft.config.schema import Attention, Dtype, ModelConfig, QuantizationMethod
from gemma_ft.errors import ConfigError
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.precision import Device, check_quantization, resolve_precision

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
    assert [reason.partition(":")[0] for reason in precision.reasons] == [
        f"dtype {dtype}",
        f"attention {attention}",
    ]
    assert precision.warnings == ()
    assert bool(precision.untested) == (device is not CPU)


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


@pytest.mark.parametrize(("device", "instead"), [(T4, "fp32"), (H100, "bf16")])
def test_gemma_3_in_fp16_trains_with_a_warning_that_says_why(device, instead):
    precision = resolve_precision(ModelConfig(dtype=Dtype.fp16), GEMMA_3, device)
    assert precision.dtype is Dtype.fp16
    (warning,) = precision.warnings
    assert "Gemma 3's activations grow beyond 65504, the largest number of fp16" in warning
    assert f"Use model.dtype=auto, which takes {instead} here." in warning
    assert resolve_precision(ModelConfig(dtype=Dtype.fp16), GEMMA_1, device).warnings == ()


def test_the_reason_says_what_keeps_a_better_attention_away():
    device = Device(kind="cuda", name="T4", bf16=False, flash_attention=False, no_flash_attention="too old")
    (_, reason) = resolve_precision(ModelConfig(), GEMMA_2, device).reasons
    assert "no flash_attention_2: too old; no sdpa: it leaves out the soft-caps" in reason
    (_, reason) = resolve_precision(ModelConfig(dtype=Dtype.fp32), GEMMA_1, H100).reasons
    assert "no flash_attention_2: it computes in bf16 and fp16 only" in reason


def _gpu(**facts):
    return Device(**{"kind": "cuda", "name": "a GPU", "bf16": True, "flash_attention": False, **facts})


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (_gpu(capability=(5, 2), architecture="sm_52"), "needs compute capability 6.0, and a GPU has sm_52"),
        (_gpu(rocm=True, architecture="gfx803"), "has no kernels for gfx803"),
        (_gpu(rocm=True, architecture="gfx906"), "has no kernels for gfx906"),
        (_gpu(kind="mps", bf16=False), "needs macOS 14"),
    ],
)
def test_quantization_is_refused_where_bitsandbytes_has_no_kernels(device, why):
    check_quantization(QuantizationMethod.none, "adamw_torch", device)
    for method in (QuantizationMethod.int8, QuantizationMethod.nf4):
        with pytest.raises(ConfigError, match=rf"quantization={method} cannot work here: .*{why}.*ion=none"):
            check_quantization(method, "adamw_torch", device)


@pytest.mark.parametrize(
    "device",
    [CPU, _gpu(), _gpu(capability=(7, 5)), _gpu(rocm=True, architecture="gfx942"), _gpu(kind="xpu")],
)
def test_quantization_is_let_through_where_bitsandbytes_has_kernels(device):
    check_quantization(QuantizationMethod.nf4, "paged_adamw_8bit", device)


def test_8_bit_optimizers_are_refused_on_an_apple_gpu():
    apple = _gpu(kind="mps", name="Apple M4")
    check_quantization(QuantizationMethod.nf4, "paged_adamw_32bit", apple)
    with pytest.raises(
        ConfigError, match=r"optim=paged_adamw_8bit has no kernels for Apple GPUs.*adamw_torch"
    ):
        check_quantization(QuantizationMethod.nf4, "paged_adamw_8bit", apple)
