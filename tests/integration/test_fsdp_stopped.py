"""A process of a sharded run that is killed or asked to stop: the run ends in time, says why, and goes on."""

import os
import signal
import sys
import time

import pytest
from fsdp_runs import METHODS, TORCHRUN, Bench, assert_bit_identical
from launching import HERE, begin, end
from program import losses, status, write_chats

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LIMIT = 60
"""Seconds that a run may outlive the death of a process."""
PROGRAM = str(HERE / "stopped_runs.py")
MORE = ["parallel=fsdp", "trainer.max_steps=5", "trainer.logging_steps=2"]
PLACES = {
    "in a step": "gemma_ft.training.trainer:RunTrainer.training_step:6",
    "in a save": "gemma_ft.training.sharded_state:_write:4",
    "in an evaluation": "gemma_ft.training.trainer:RunTrainer.prediction_step:10",
    "before a checkpoint has its name": "gemma_ft.training.trainer:publish_checkpoint:2",
    "in the final save": "gemma_ft.training.sharded_trainer:ShardedTrainer.trained_weights:1",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("stopped")
    return Bench(folder, write_chats(folder / "chats.jsonl"))


def launch(bench, name, method, **env):
    """Start a run in two processes; returns what it said and its exit code."""
    words = bench.words(name, *METHODS[method], *MORE)
    mark = bench.folder / "killed"
    mark.unlink(missing_ok=True)
    done = end(begin(*TORCHRUN, "2", PROGRAM, *words, cwd=bench.folder, KILLED_AT=str(mark), **env))
    assert mark.exists() == bool(env)
    if mark.exists():
        assert time.time() - mark.stat().st_mtime < LIMIT
    return done.stderr, done.returncode


def go_on(bench, name, method):
    """Give the same line again, and once more in a folder of its own; both end bit for bit alike."""
    whole = f"{method}-whole"
    lines = [bench.words(name, *METHODS[method], *MORE)]
    if not bench.run(whole).exists():
        lines.append(bench.words(whole, *METHODS[method], *MORE))
    done = bench.launch(2, *lines)
    assert f"going on from outputs/{name}/checkpoints/step-00000" in done.stderr
    assert_bit_identical(bench, whole, name)


def check_killed(bench, place, rank, method):
    name = f"{method}-{rank}-{place.replace(' ', '-')}"
    said, code = launch(bench, name, method, STOP_AT=PLACES[place], RANK_STOPPED=rank, SIGNAL="SIGKILL")
    assert code == 1
    assert said.count(f"error: process {rank} of 2") == 1
    assert "has died. The same line again goes on" in said
    assert 'stopped_runs.py", line' not in said  # a traceback of ours; torchrun prints its own
    assert status(bench.run(name))["state"] == "failed"
    assert status(bench.run(name))["reason"].startswith(f"process {rank} of 2")
    go_on(bench, name, method)


def test_a_process_killed_in_a_save_ends_the_run_which_goes_on_bit_by_bit(bench):
    check_killed(bench, "in a save", "1", "nf4")


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("place", "method"),
    [*zip(PLACES, ["full", "lora", "nf4", "full", "lora"], strict=True), ("in the final save", "full")],
)
def test_whoever_is_killed_wherever_the_run_goes_on_bit_by_bit(bench, place, rank, method):
    if place == "before a checkpoint has its name" and rank == "1":
        pytest.skip("only the first process comes there")
    check_killed(bench, place, rank, method)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["in a step", "in an evaluation", "in a save"])
def test_one_that_is_asked_to_stop_stops_all_with_a_checkpoint(bench, place):
    name = f"asked-{place.replace(' ', '-')}"
    said, code = launch(bench, name, "lora", STOP_AT=PLACES[place], RANK_STOPPED="1", SIGNAL="SIGTERM")
    assert code == 1  # torchrun's own
    assert said.count("interrupted: another process was asked to stop. The same line again goes on.") == 1
    assert status(bench.run(name))["state"] == "interrupted"
    go_on(bench, name, "lora")


@pytest.mark.slow
def test_a_launcher_that_is_asked_to_stop_leaves_a_checkpoint_of_the_step(bench):
    words = bench.words("launcher", *METHODS["full"], *MORE, "trainer.save_steps=100")
    launcher = begin(*TORCHRUN, "2", PROGRAM, *words, cwd=bench.folder)
    metrics, limit = bench.run("launcher") / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and '"step": 1' in metrics.read_text()):
        assert launcher.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.kill(launcher.pid, signal.SIGTERM)
    assert end(launcher).returncode != 0
    assert status(bench.run("launcher"))["state"] == "interrupted"
    assert losses(bench.run("launcher"))
    again = bench.words("launcher", *METHODS["full"], *MORE)  # save_steps may change
    whole = bench.words("launcher-whole", *METHODS["full"], *MORE)
    assert "going on from" in bench.launch(2, again, whole).stderr
    assert_bit_identical(bench, "launcher-whole", "launcher")
