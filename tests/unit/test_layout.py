"""Processes and accumulation, from the launcher's variables."""

import os

import pytest

from gemma_ft.config.schema import ParallelConfig, ParallelMethod, RunConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.errors import ConfigError
from gemma_ft.training.layout import resolve_layout


def config(method: str = "auto", global_batch: int = 16, micro_batch: int = 2) -> RunConfig:
    return RunConfig(
        parallel=ParallelConfig(method=ParallelMethod(method)),
        trainer=TrainerConfig(global_batch_size=global_batch, micro_batch_size=micro_batch),
    )


@pytest.fixture
def launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")

    def start(world_size: int, rank: int = 0) -> None:
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        monkeypatch.setenv("RANK", str(rank))

    return start


def test_accumulation_keeps_the_global_batch_at_every_world_size(launcher):
    assert resolve_layout(config()).accumulation == 8
    launcher(4, rank=3)
    layout = resolve_layout(config())
    assert (layout.accumulation, layout.world_size, layout.writes) == (2, 4, False)


def test_one_process_sees_one_gpu_and_many_see_theirs(launcher):
    launcher(2)
    resolve_layout(config())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    launcher(1)
    resolve_layout(config())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_launcher_that_asks_for_another_engine_is_refused(launcher, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="cannot use the launcher's ACCELERATE_USE_FSDP"):
        resolve_layout(config())


def test_what_the_launcher_did_must_fit_the_layout(launcher):
    with pytest.raises(ConfigError, match="parallel=ddp needs one process a GPU, which"):
        resolve_layout(config("ddp"))
    launcher(2)
    with pytest.raises(ConfigError, match="parallel=single cannot use the launcher's 2 processes"):
        resolve_layout(config("single"))
    with pytest.raises(ConfigError, match=r"global_batch_size=6 is not divisible by 4 .* multiple of 4"):
        resolve_layout(config(global_batch=6))
