"""What a run folder records of the machine, and what is said of it when a run begins."""

import json
import logging
from dataclasses import replace

import pytest

from gemma_ft.config.schema import Attention, Dtype, ModelConfig, ParallelMethod, RunConfig
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.precision import Device, Precision, resolve_precision
from gemma_ft.runs import RunFolder
from gemma_ft.training.environment import describe_environment
from gemma_ft.training.layout import Layout
from gemma_ft.training.opening import open_folder

LAYOUT = Layout(world_size=2, rank=0, accumulation=4, method=ParallelMethod.ddp, nodes=2)
L4 = Device(
    kind="cuda",
    name="NVIDIA L4",
    bf16=True,
    flash_attention=False,
    count=2,
    memory=23 * 2**30,
    capability=(8, 9),
    architecture="sm_89",
    runtime="CUDA 12.8",
    driver="550.54.15",
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "NVIDIA L4"),
        ("device_kind", "cuda"),
        ("device_count", 2),
        ("device_memory_bytes", 23 * 2**30),
        ("device_architecture", "sm_89"),
        ("compute_capability", "8.9"),
        ("runtime", "CUDA 12.8"),
        ("driver", "550.54.15"),
        ("parallel", "ddp"),
        ("nodes", 2),
        ("world_size", 2),
        ("gradient_accumulation_steps", 4),
        ("dtype", "fp16"),
        ("attention", "sdpa"),
    ],
)
def test_the_environment_holds_the_device_and_the_layout(key, value):
    precision = resolve_precision(ModelConfig(dtype=Dtype.fp16), FAMILIES[2], L4)
    assert describe_environment(precision, LAYOUT)[key] == value


def test_the_environment_holds_why_and_what_was_warned_of():
    precision = resolve_precision(ModelConfig(dtype=Dtype.fp16), FAMILIES[2], L4)
    found = json.loads(json.dumps(describe_environment(precision, LAYOUT)))
    assert found["reasons"] == list(precision.reasons)
    assert len(found["warnings"]) == 1
    assert "65504" in found["warnings"][0]
    assert "not tested on NVIDIA GPUs" in found["untested"]


def test_an_amd_gpu_is_recorded_as_one_and_a_cpu_without_what_it_has_not():
    precision = Precision(device=L4, dtype=Dtype.bf16, attention=Attention.sdpa, reasons=())
    amd = replace(precision, device=replace(L4, rocm=True, capability=None, architecture="gfx942"))
    assert describe_environment(amd, LAYOUT)["device_kind"] == "rocm"
    cpu = replace(precision, device=Device(kind="cpu", name="CPU", bf16=True, flash_attention=False))
    found = describe_environment(cpu, LAYOUT)
    assert found["device_kind"] == "cpu"
    assert [found[key] for key in ("device_memory_bytes", "compute_capability", "driver")] == [None] * 3


def test_a_warning_of_the_policy_is_said_once_when_a_run_begins(tmp_path, caplog):
    run = RunFolder(tmp_path)
    precision = resolve_precision(ModelConfig(dtype=Dtype.fp16), FAMILIES[2], L4)
    with caplog.at_level(logging.INFO, logger="gemma_ft"):
        open_folder(RunConfig(name="x", output_dir=str(tmp_path)), run, LAYOUT, precision)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == list(precision.warnings)
    assert json.loads(run.environment.read_text())["warnings"] == warned
