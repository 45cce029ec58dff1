"""What torch and the drivers tell of a device, and what the policy makes of it; none of them is here."""

import pytest
import torch
from fake_gpus import (
    GIB,
    install_driver,
    install_flash_attention,
    pretend,
    pretend_apple,
    pretend_intel,
)

from gemma_ft.config.schema import Attention, Dtype, ModelConfig
from gemma_ft.errors import ConfigError
from gemma_ft.families import FAMILIES
from gemma_ft.modeling import drivers
from gemma_ft.modeling.precision import read_device, resolve_precision

GEMMA_1, GEMMA_2, GEMMA_3 = FAMILIES


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def resolve(family=GEMMA_1, **model):
    precision = resolve_precision(ModelConfig(**model), family, read_device())
    return precision.dtype.value, precision.attention.value


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        # Gemma 1, Gemma 2, Gemma 3; without the flash-attn package
        ("P100", ["fp16 sdpa", "fp16 eager", "fp32 sdpa"]),
        ("V100", ["fp16 sdpa", "fp16 eager", "fp32 sdpa"]),
        ("T4", ["fp16 sdpa", "fp16 eager", "fp32 sdpa"]),
        ("A100", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
        ("RTX 3090", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
        ("L4", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
        ("H100", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
        ("B200", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
        ("MI300X", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
        ("RX 7900", ["bf16 sdpa", "bf16 eager", "bf16 sdpa"]),
    ],
)
def test_each_gpu_and_family_gets_its_format_and_attention(monkeypatch, gpu, expected):
    pretend(monkeypatch, gpu)
    assert [" ".join(resolve(family)) for family in FAMILIES] == expected


@pytest.mark.parametrize("gpu", ["A100", "RTX 3090", "L4", "H100", "B200", "RTX 5090"])
def test_ampere_and_newer_take_flash_attention_once_it_is_installed(monkeypatch, tmp_path, gpu):
    pretend(monkeypatch, gpu)
    assert not read_device().flash_attention
    install_flash_attention(monkeypatch, tmp_path / "site")
    assert [resolve(family)[1] for family in FAMILIES] == ["flash_attention_2"] * 3
    assert resolve(dtype=Dtype.fp32)[1] == "sdpa"


@pytest.mark.parametrize("gpu", ["P100", "V100", "T4"])
def test_older_gpus_never_take_flash_attention(monkeypatch, tmp_path, gpu):
    pretend(monkeypatch, gpu)
    install_flash_attention(monkeypatch, tmp_path / "site")
    assert [resolve(family)[1] for family in FAMILIES] == ["sdpa", "eager", "sdpa"]
    assert "needs compute capability 8.0, and Tesla" in read_device().no_flash_attention


@pytest.mark.parametrize(
    ("gpu", "package", "why"),
    [
        ("A100", {"version": "2.6.1"}, "flash-attn 2.6.1 is older than 2.6.2, the first that trains every"),
        ("B200", {"version": "2.7.2"}, "flash-attn 2.7.2 is older than 2.7.3"),
        ("A100", {"version": "unknown"}, "no version that can be compared with 2.6.2"),
        ("H100", {"name": "flash-attn-4"}, "the flash-attn package is not installed"),
        (
            "L4",
            {"code": "raise ImportError('undefined symbol: _ZN3c10')"},
            r"not load \(undefined symbol: _ZN",
        ),
    ],
)
def test_a_flash_attention_that_cannot_serve_is_not_taken_and_says_why(
    monkeypatch, tmp_path, gpu, package, why
):
    pretend(monkeypatch, gpu)
    install_flash_attention(monkeypatch, tmp_path / "site", **package)
    assert resolve() == ("bf16", "sdpa")
    with pytest.raises(ConfigError, match=rf"flash_attention_2 needs the flash-attn package.*{why}"):
        resolve(attention=Attention.flash_attention_2)


def test_bf16_that_is_only_emulated_is_refused_however_torch_is_asked(monkeypatch):
    pretend(monkeypatch, "T4")
    assert torch.cuda.is_bf16_supported()
    with pytest.raises(
        ConfigError, match=r"only emulated on Tesla T4. Use model.dtype=auto, which takes fp16"
    ):
        resolve(dtype=Dtype.bf16)
    with pytest.raises(ConfigError, match=r"Use model.dtype=auto, which takes fp32"):
        resolve(GEMMA_3, dtype=Dtype.bf16)


def test_an_amd_gpu_is_told_from_an_nvidia_one(monkeypatch):
    pretend(monkeypatch, "MI300X")
    device = read_device()
    assert (device.kind, device.backend, device.architecture) == ("cuda", "rocm", "gfx942")
    assert device.capability is None  # the numbers mean something else there
    assert device.runtime == "ROCm 7.1.0"
    assert device.memory == 192 * GIB
    precision = resolve_precision(ModelConfig(), GEMMA_1, device)
    assert "not tested on AMD GPUs (ROCm)" in precision.untested
    assert ["training on AMD GPUs (ROCm) was never tested" in line for line in precision.warnings] == [True]


def test_an_amd_gpu_takes_flash_attention_only_when_it_is_asked_to(monkeypatch, tmp_path):
    pretend(monkeypatch, "MI300X")
    install_flash_attention(monkeypatch, tmp_path / "site")
    precision = resolve_precision(ModelConfig(), GEMMA_1, read_device())
    assert precision.attention is Attention.sdpa
    assert "its ROCm build is taken only where model.attention asks" in precision.reasons[1]
    assert resolve(attention=Attention.flash_attention_2)[1] == "flash_attention_2"


def test_flash_attention_is_refused_on_amd_gpus_without_its_backward_pass(monkeypatch, tmp_path):
    pretend(monkeypatch, "RX 7900")
    install_flash_attention(monkeypatch, tmp_path / "site")
    with pytest.raises(ConfigError, match="ROCm build trains on MI200, MI300 and MI350, not on gfx1100"):
        resolve(attention=Attention.flash_attention_2)


def test_an_intel_gpu_computes_as_torch_reports(monkeypatch):
    pretend_intel(monkeypatch)
    device = read_device()
    assert (device.kind, device.memory, device.driver) == ("xpu", 16 * GIB, "1.6.3")
    assert resolve() == ("bf16", "sdpa")
    assert resolve(dtype=Dtype.fp16)[0] == "fp16"
    pretend_intel(monkeypatch, bf16=False, fp64=False)
    assert resolve() == ("fp32", "sdpa")
    with pytest.raises(
        ConfigError, match="dtype=fp16 cannot train on Intel Arc B580: this torch has no loss"
    ):
        resolve(dtype=Dtype.fp16)
    with pytest.raises(ConfigError, match="transformers would fetch compiled code from the hub"):
        resolve(attention=Attention.flash_attention_2)


def test_an_apple_gpu_computes_as_torch_reports(monkeypatch):
    pretend_apple(monkeypatch)
    device = read_device()
    assert (device.kind, device.name, device.memory) == ("mps", "Apple M4", 12 * GIB)
    assert [resolve(family) for family in FAMILIES] == [("bf16", "sdpa"), ("bf16", "eager"), ("bf16", "sdpa")]
    assert resolve(dtype=Dtype.fp16)[0] == "fp16"
    pretend_apple(monkeypatch, macos=13)
    assert resolve() == ("fp32", "sdpa")
    with pytest.raises(ConfigError, match=r"bf16 is only emulated on Apple M4. .* which takes fp32"):
        resolve(dtype=Dtype.bf16)


def test_fp16_is_refused_where_torch_cannot_scale_losses_on_an_apple_gpu(monkeypatch):
    pretend_apple(monkeypatch, version="2.7.1")
    with pytest.raises(
        ConfigError, match=r"model.dtype=fp16 cannot train on Apple M4: this torch has no loss"
    ):
        resolve(dtype=Dtype.fp16)


def test_memory_capability_and_driver_are_kept(monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2026\n"
    )
    monkeypatch.setattr(drivers, "_NVIDIA", file)
    pretend(monkeypatch, "L4", "L4")
    device = read_device()
    assert (device.count, device.memory, device.capability) == (2, 23 * GIB, (8, 9))
    assert (device.architecture, device.runtime, device.driver) == ("sm_89", "CUDA 12.8", "550.54.15")


def test_a_driver_that_does_not_tell_its_memory_keeps_no_run_from_training(monkeypatch):
    pretend(monkeypatch, "H100")

    def fail(index=None):
        raise RuntimeError("NVML")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert read_device().memory is None
    assert resolve() == ("bf16", "sdpa")


def test_processes_on_different_gpus_take_what_all_of_them_can(monkeypatch, tmp_path):
    install_flash_attention(monkeypatch, tmp_path / "site")
    pretend(monkeypatch, "A100", "T4")
    assert resolve() == ("bf16", "flash_attention_2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    device = read_device()
    assert resolve() == ("fp16", "sdpa")
    assert device.name == "NVIDIA A100-SXM4-80GB and Tesla T4"
    assert (device.memory, device.capability, device.architecture) == (15 * GIB, (7, 5), "sm_75")


def test_accelerates_wish_for_the_cpu_is_granted(monkeypatch):
    pretend(monkeypatch, "A100")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert read_device().kind == "cpu"
    assert resolve() == ("fp32", "sdpa")


def test_a_gpu_that_torch_cannot_use_is_told_of(monkeypatch, tmp_path):
    install_driver(monkeypatch, tmp_path, "NVIDIA L4", "NVIDIA L4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.version, "cuda", None)
    precision = resolve_precision(ModelConfig(), GEMMA_1, read_device())
    assert len(precision.warnings) == 1
    assert precision.warnings[0].startswith("training on the CPU: NVIDIA L4 is in this machine, but torch 2.")
    assert "pip install --force-reinstall torch==2." in precision.warnings[0]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "for CUDA 13.0 cannot use it with the driver of unknown version" in read_device().passed_over


def test_a_gpu_that_was_hidden_on_purpose_is_not_told_of(monkeypatch, tmp_path):
    install_driver(monkeypatch, tmp_path, "NVIDIA L4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_device().passed_over == ""


def test_a_machine_without_a_gpu_has_none_passed_over(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    install_driver(monkeypatch, tmp_path, says=9)
    assert read_device().passed_over == ""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert read_device().passed_over == ""
