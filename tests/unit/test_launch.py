"""Whether the program starts processes of its own, and what it says when one of them dies."""

import os
import signal
from types import SimpleNamespace

import pytest

from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import ConfigError, TrainingError
from gemma_ft.runs import RunFolder, Stage, State
from gemma_ft.training import ending, launch, layout


def config(method: str, folder: str = "outputs/x") -> RunConfig:
    made = RunConfig(output_dir=folder)
    made.parallel.method = ParallelMethod(method)
    return made


@pytest.fixture
def gpus(monkeypatch):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return lambda number: monkeypatch.setattr(launch, "count_gpus", lambda: number)


@pytest.mark.parametrize(
    ("method", "number", "launched", "processes"),
    [
        ("ddp", 4, False, 4),
        ("ddp", 4, True, 0),  # by torchrun, accelerate or a cluster
        ("ddp", 1, False, 0),
        ("fsdp", 4, False, 4),
        ("fsdp", 4, True, 0),
        ("fsdp", 1, False, 1),  # offloading wants a process group of one
        ("auto", 4, False, 0),
        ("single", 4, False, 0),
    ],
)
def test_processes_are_started_where_they_are_asked_for_and_no_launcher_has_begun(
    monkeypatch, gpus, method, number, launched, processes
):
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "4")
    gpus(number)
    assert launch.processes_to_launch(config(method)) == processes


def test_shards_are_refused_on_a_machine_without_gpus_before_anything_starts(monkeypatch, gpus):
    gpus(0)
    with pytest.raises(ConfigError, match=r"parallel=fsdp shards over GPUs, and this machine shows none"):
        launch.processes_to_launch(config("fsdp"))
    gpus(2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match=r"this machine shows none"):
        launch.processes_to_launch(config("fsdp"))
    monkeypatch.setattr(layout, "SHARDING_DEVICES", ("cpu",))
    assert launch.processes_to_launch(config("fsdp")) == 0


def test_a_line_that_srun_starts_several_times_starts_nothing(monkeypatch, gpus):
    gpus(4)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS=4 starts 4 processes that do not know"):
        launch.processes_to_launch(config("ddp"))


def failed(**codes: tuple[int, int]) -> SimpleNamespace:
    """An error of torchrun: an exit code and a second for each rank."""
    return SimpleNamespace(
        failures={
            int(rank[1:]): SimpleNamespace(exitcode=code, timestamp=second)
            for rank, (code, second) in codes.items()
        }
    )


def test_the_process_that_died_is_named_and_not_the_ones_that_died_of_it(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_status(State.running, Stage.training)
    asked = config("ddp", str(run.path))

    died = launch._explain(failed(r0=(1, 7), r1=(-signal.SIGKILL, 7)), asked, 2)

    assert isinstance(died, TrainingError)
    assert "process 1 of 2 was killed by SIGKILL, as the system does where memory runs out. The same" in str(
        died
    )
    assert run.read_status().state is State.failed
    assert run.read_status().reason.startswith("process 1 of 2 was killed by SIGKILL")
    assert not run.locked

    crashed = launch._explain(failed(r0=(-signal.SIGSEGV, 3), r1=(-signal.SIGKILL, 33)), asked, 2)
    assert "process 0 of 2 was killed by SIGSEGV. The same line goes on" in str(crashed)
    ended = launch._explain(failed(r0=(2, 3), r1=(-signal.SIGKILL, 33)), asked, 2)
    assert isinstance(ended, SystemExit)  # it has said why
    assert ended.code == 2


def test_a_run_that_is_not_there_or_is_finished_is_not_called_failed(tmp_path):
    run = RunFolder(tmp_path / "run")
    ending.record_death(run, "process 0 of 2 was killed")
    assert not run.path.exists()
    run.path.mkdir()
    run.write_status(State.finished, Stage.finished)
    ending.record_death(run, "process 0 of 2 was killed")
    assert run.read_status().state is State.finished


def test_threads_and_time_to_stop_in_are_given_to_the_processes(monkeypatch, tmp_path):
    import torch.distributed.run as torchrun

    seen = {}
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torchrun, "run", lambda words: seen.update(vars(words), **os.environ))
    launch.launch(config("fsdp", str(tmp_path)), 2, "--extend")
    assert seen["nproc_per_node"] == "2"
    assert seen["training_script"] == "gemma_ft"
    assert seen["training_script_args"][-1] == "--extend"
    assert seen["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "300"
    assert int(seen["OMP_NUM_THREADS"]) >= 1
