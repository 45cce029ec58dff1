"""Processes and accumulation, from the launcher's variables."""

import os
from types import SimpleNamespace

import pytest

from gemma_ft.config.schema import ParallelConfig, ParallelMethod, RunConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.errors import ConfigError, TrainingError
from gemma_ft.training import layout as layouts
from gemma_ft.training.layout import Layout, check_connected, check_devices, resolve_layout


def config(method: str = "auto", global_batch: int = 16, micro_batch: int = 2, **parallel) -> RunConfig:
    return RunConfig(
        parallel=ParallelConfig(method=ParallelMethod(method), **parallel),
        trainer=TrainerConfig(global_batch_size=global_batch, micro_batch_size=micro_batch),
    )


def test_accumulation_keeps_the_global_batch_at_every_world_size(launcher):
    assert resolve_layout(config()).accumulation == 8
    launcher(4, rank=3)
    layout = resolve_layout(config())
    assert (layout.accumulation, layout.world_size, layout.writes) == (2, 4, False)
    assert layout.method is ParallelMethod.ddp


def test_the_place_on_a_machine_is_told_apart_from_the_place_in_the_run(launcher):
    launcher(4, rank=3, LOCAL_RANK="1", GROUP_WORLD_SIZE="2")
    layout = resolve_layout(config())
    assert (layout.rank, layout.local_rank, layout.nodes) == (3, 1, 2)


def test_one_process_sees_one_gpu_and_many_see_theirs(launcher, monkeypatch):
    launcher(2)
    resolve_layout(config())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    launcher(1)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "6,7")
    resolve_layout(config())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["HIP_VISIBLE_DEVICES"] == "6"
    assert os.environ["ZE_AFFINITY_MASK"] == "0"


@pytest.mark.parametrize(("visible", "said"), [("3,5", "one of 2 GPUs is used"), ("3", None), ("", None)])
def test_gpus_that_auto_leaves_alone_are_told(launcher, monkeypatch, caplog, visible, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with caplog.at_level("INFO", logger="gemma_ft"):
        resolve_layout(config())
    assert [record.getMessage()[:21] for record in caplog.records] == ([said] if said else [])
    caplog.clear()
    with caplog.at_level("INFO", logger="gemma_ft"):
        resolve_layout(config("single"))  # as it was asked for
    assert not caplog.records


def test_gpus_are_counted_where_none_is_named(launcher, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(layouts, "_NVIDIA_GPUS", tmp_path / "none")
    assert layouts._gpus_in_sight() == 0
    for place in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / place).mkdir()
    monkeypatch.setattr(layouts, "_NVIDIA_GPUS", tmp_path)
    assert layouts._gpus_in_sight() == 2


def test_a_launcher_that_asks_for_cpus_hides_every_gpu(launcher):
    launcher(2, ACCELERATE_USE_CPU="true")
    resolve_layout(config())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_launcher_s_single_process_is_not_connected_with_itself_but_for_shards(launcher):
    launcher(1)
    assert resolve_layout(config("fsdp")).sharded
    assert os.environ["LOCAL_RANK"] == "0"
    assert resolve_layout(config()).method is ParallelMethod.single
    assert "LOCAL_RANK" not in os.environ


def test_what_the_launcher_did_must_fit_the_layout(launcher):
    with pytest.raises(ConfigError, match="parallel=ddp needs one process a GPU, which"):
        resolve_layout(config("ddp"))
    with pytest.raises(ConfigError, match="parallel=fsdp needs one process a GPU, which"):
        resolve_layout(config("fsdp"))
    launcher(2)
    with pytest.raises(ConfigError, match="parallel=single cannot use the launcher's 2 processes"):
        resolve_layout(config("single"))
    with pytest.raises(ConfigError, match=r"global_batch_size=6 is not divisible by 4 .* multiple of 4"):
        resolve_layout(config(global_batch=6))
    launcher(16)
    with pytest.raises(ConfigError, match=r"global_batch_size=16 is not divisible by 32 .* x 16 processes"):
        resolve_layout(config())


def test_shard_groups_must_divide_the_processes(launcher):
    launcher(4)
    assert resolve_layout(config("fsdp", dp_shard_size=2)).sharded
    with pytest.raises(ConfigError, match=r"dp_shard_size=3 does not divide the 4 .* divisor of 4"):
        resolve_layout(config("fsdp", dp_shard_size=3))
    with pytest.raises(ConfigError, match="dp_shard_size=8 does not divide the 4"):
        resolve_layout(config("fsdp", dp_shard_size=8))


def laid_out(method: str, world_size: int = 2, rank: int = 0, local_rank: int = 0) -> Layout:
    return Layout(
        world_size=world_size,
        rank=rank,
        local_rank=local_rank,
        accumulation=1,
        method=ParallelMethod(method),
    )


def test_shards_need_a_device_that_they_are_made_for(monkeypatch):
    for kind in ("cpu", "mps"):
        with pytest.raises(ConfigError, match=rf"parallel=fsdp shards over GPUs, .* \(device {kind}\)"):
            check_devices(laid_out("fsdp"), kind)
    check_devices(laid_out("ddp"), "cpu")
    monkeypatch.setattr(layouts, "count_gpus", lambda: 2)
    check_devices(laid_out("fsdp"), "cuda")
    check_devices(laid_out("fsdp"), "xpu")
    monkeypatch.setattr(layouts, "SHARDING_DEVICES", ("cpu",))  # as the tests on CPUs do
    check_devices(laid_out("fsdp"), "cpu")


def test_two_processes_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(layouts, "count_gpus", lambda: 1)
    check_devices(laid_out("ddp", rank=2, local_rank=0), "cuda")
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=1 finds 1 GPU\(s\) .* Start at most 1 here"):
        check_devices(laid_out("ddp", rank=1, local_rank=1), "cuda")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    check_devices(laid_out("ddp", rank=1, local_rank=1), "cuda")  # its own, which SLURM has bound to it
    monkeypatch.setattr(layouts, "count_gpus", lambda: 2)
    with pytest.raises(ConfigError, match="LOCAL_RANK=2 finds 2 GPU"):
        check_devices(laid_out("ddp", world_size=4, rank=2, local_rank=2), "cuda")


def connected(kind: str, world_size: int = 2, rank: int = 0, precision: str = "no") -> SimpleNamespace:
    from accelerate.utils import DistributedType

    return SimpleNamespace(
        distributed_type=DistributedType[kind],
        num_processes=world_size,
        process_index=rank,
        mixed_precision=precision,
    )


@pytest.mark.parametrize(
    ("method", "kind"),
    [("ddp", "MULTI_GPU"), ("ddp", "MULTI_CPU"), ("ddp", "MULTI_XPU"), ("fsdp", "FSDP")],
)
def test_processes_that_are_connected_as_asked_pass(method, kind):
    check_connected(connected(kind), laid_out(method))
    check_connected(connected("NO", 1), laid_out("single", 1))


@pytest.mark.parametrize(
    ("method", "accelerator"),
    [
        ("fsdp", connected("MULTI_CPU")),
        ("fsdp", connected("NO", 1)),
        ("ddp", connected("FSDP")),
        ("ddp", connected("DEEPSPEED")),
        ("ddp", connected("MULTI_GPU", 4)),
        ("ddp", connected("MULTI_GPU", 2, 1)),
        ("ddp", connected("NO", 1)),
    ],
)
def test_a_silent_fall_back_of_accelerate_ends_the_run(method, accelerator):
    with pytest.raises(TrainingError, match=rf"parallel={method} asked for process 0 of 2, but accelerate"):
        check_connected(accelerator, laid_out(method))
    with pytest.raises(TrainingError, match="parallel=single asked for process 0 of 1"):
        check_connected(connected("MULTI_CPU", 1), laid_out("single", 1))


def test_the_number_format_of_a_launcher_does_not_stand_and_that_is_said_once(launcher, caplog):
    launcher(2, ACCELERATE_MIXED_PRECISION="fp16")
    layout = resolve_layout(config())
    check_connected(connected("MULTI_GPU", precision="fp16"), layout)
    assert caplog.messages == []
    check_connected(connected("MULTI_GPU", precision="bf16"), layout)
    assert caplog.messages == [
        "the launcher's mixed_precision=fp16 is passed over: model.dtype decides, and this run has bf16. "
        "Leave it out of the launcher's file, or give model.dtype=fp16."
    ]
    launcher(2, rank=1, ACCELERATE_MIXED_PRECISION="fp16")
    check_connected(connected("MULTI_GPU", rank=1), resolve_layout(config()))
    launcher(2, ACCELERATE_MIXED_PRECISION="no")
    check_connected(connected("MULTI_GPU", precision="bf16"), resolve_layout(config()))
    assert len(caplog.messages) == 1
