"""A process that is killed, or whose machine fails: the others end soon, and say so."""

import os
import signal
import sys
import time

import pytest
from launching import HERE, TWO_NODES, WORDS, accelerate, begin, end, torchrun
from program import assert_same_tensors, losses, status

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LIMIT = 60
"""Seconds that a run may outlive the death of a process."""
PROGRAM = str(HERE / "dying.py")
STEPS = ("trainer.max_steps=6", "trainer.save_steps=2", "trainer.save_total_limit=null")


@pytest.fixture
def run(tmp_path, chats, tiny):
    """Run a launcher's line, and see that it ends in time after a death; returns what it said."""

    def launched(name, line, **env):
        words = (PROGRAM, f"name={name}", *WORDS, *STEPS, f"dataset.path={chats}")
        killed = tmp_path / "killed"
        killed.unlink(missing_ok=True)
        nodes = line(*words)
        nodes = [nodes] if isinstance(nodes, tuple) else nodes
        started = [begin(*node, cwd=tmp_path, KILLED_AT=str(killed), **env) for node in nodes]
        done = [end(process) for process in started]
        if killed.exists():
            assert time.time() - killed.stat().st_mtime < LIMIT
        said = "".join(process.stderr for process in done)
        return tmp_path / "outputs" / name, [process.returncode for process in done], said

    return launched


def own(processes):
    """Write the line of the program that starts its processes itself, on a machine with so many GPUs."""
    return lambda *words: (sys.executable, *words, "parallel=ddp")


def test_a_killed_process_ends_the_run_which_then_goes_on(run):
    launched = {"STOP_AT": "step 3", "GPUS": "2"}
    cut, codes, said = run("cut", own(2), KILLED="1", ACCELERATE_USE_CPU="false", **launched)
    assert codes == [1]
    assert "parallel=ddp: starting 2 process(es), one a GPU" in said
    assert "error: process 1 of 2 was killed by SIGKILL" in said
    assert "Traceback" not in said
    assert status(cut)["state"] == "failed"
    assert status(cut)["reason"].startswith("process 1 of 2 was killed by SIGKILL")

    cut, codes, said = run("cut", own(2), ACCELERATE_USE_CPU="false", GPUS="2")
    assert codes == [0], said
    assert "going on from outputs/cut/checkpoints/step-000002" in said
    assert len(losses(cut)) == 6
    assert status(cut)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["0", "1"])
@pytest.mark.parametrize("place", ["rows", "describe", "model", "step 0", "step 3", "save 4", "publish"])
def test_whoever_is_killed_wherever_the_run_fails_in_time(run, place, killed):
    if place in ("describe", "publish") and killed == "1":
        pytest.skip("only the first process comes there")
    cut, codes, said = run("cut", lambda *words: torchrun(2, *words), STOP_AT=place, KILLED=killed)
    assert codes == [1]
    assert f"error: process {killed} of 2" in said
    assert "has died. The same line again goes on" in said
    assert status(cut)["state"] == "failed"
    _, codes, said = run("cut", lambda *words: torchrun(2, *words))
    assert codes == [0], said
    assert len(losses(cut)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["0", "3"])
def test_four_processes_of_accelerate_end_with_one(run, killed):
    cut, codes, said = run("cut", lambda *words: accelerate(4, *words), STOP_AT="step 3", KILLED=killed)
    assert codes == [1]
    assert said.count(f"error: process {killed} of 4") == 1
    assert status(cut)["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "hanging"), [("1", "0"), ("0", "1")])
def test_a_process_that_waits_for_a_dead_one_is_ended(run, killed, hanging):
    words = {"STOP_AT": "step 3", "KILLED": killed, "HANGING": hanging}
    cut, codes, said = run("cut", lambda *line: torchrun(2, *line), **words)
    assert codes == [1]
    assert said.count(f"error: process {killed} of 2") == 1
    assert status(cut)["state"] == "failed"
    cut, codes, said = run("own", own(2), ACCELERATE_USE_CPU="false", GPUS="2", **words)
    assert codes == [1]
    assert f"error: process {killed} of 2 was killed by SIGKILL" in said


@pytest.mark.slow
@pytest.mark.parametrize("hanging", ["", "0"])
@pytest.mark.parametrize("launcher", list(TWO_NODES))
def test_a_death_on_one_machine_ends_the_run_on_the_other(run, launcher, hanging):
    cut, codes, said = run(
        "cut", lambda *words: TWO_NODES[launcher](1, *words), STOP_AT="step 3", KILLED="1", HANGING=hanging
    )
    assert codes == [1, 1]
    assert said.count("error: process 1 of 2") == 1
    assert status(cut)["state"] == "failed"


@pytest.mark.slow
def test_a_stop_of_our_own_launcher_saves_and_goes_on_alike(run, tmp_path, chats):
    whole, codes, said = run("whole", own(2), ACCELERATE_USE_CPU="false", GPUS="2")
    assert codes == [0], said
    words = (PROGRAM, "name=cut", *WORDS, *STEPS, f"dataset.path={chats}")
    launcher = begin(*own(2)(*words), cwd=tmp_path, ACCELERATE_USE_CPU="false", GPUS="2")
    metrics, limit = tmp_path / "outputs" / "cut" / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and '"step": 1' in metrics.read_text()):
        assert launcher.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(launcher.pid, signal.SIGTERM)
    done = end(launcher)
    assert done.returncode == 128 + signal.SIGTERM
    cut = tmp_path / "outputs" / "cut"
    assert status(cut)["state"] == "interrupted"
    _, codes, said = run("cut", own(2), ACCELERATE_USE_CPU="false", GPUS="2")
    assert codes == [0], said
    assert losses(cut) == losses(whole)
    assert_same_tensors(cut / "adapter", whole / "adapter")
