"""Runs that are stopped at every stage, each followed by the same line and compared with one that was not."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import assert_same_tensors, losses, start, status, write_chats

from gemma_ft.cache import cache_folder
from gemma_ft.runs import RunFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

TIMES = ("tokens_per_second", "peak_memory_bytes", "eval_runtime", "eval_samples_per_second")
TIMES += ("eval_steps_per_second", "eval_model_preparation_time")


def words_for(chats: Path, name: str, *more: str) -> list[str]:
    return [
        f"name={name}",
        "model=tiny",
        "quantization=none",
        "adapter=lora",
        "adapter.dropout=0.1",
        "dataset=local",
        f"dataset.path={chats}",
        "dataset.eval_fraction=0.2",
        "trainer.max_length=64",
        "trainer.max_steps=7",
        "trainer.eval_steps=3",
        "trainer.save_steps=3",
        "trainer.global_batch_size=2",
        "trainer.logging_steps=2",
        "trainer.learning_rate=1e-2",
        "export.certificate=none",
        *more,
    ]


def records(run: Path) -> list[dict]:
    """What a run logged, without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    assert_same_tensors(one / "adapter", other / "adapter")
    assert_same_tensors(one / "merged", other / "merged")


def send_at(patch: pytest.MonkeyPatch, target: str, call: int, number: signal.Signals) -> None:
    """Send this process a signal when it calls a function for the n-th time."""
    module, _, name = target.rpartition(".")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        package, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(package), cls)
    function, calls = getattr(owner, name), []

    def called(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    patch.setattr(owner, name, called)


STAGES = {
    "starting": ("gemma_ft.training.run.begin_run", 1, None),
    "opening its folder": ("gemma_ft.training.environment.describe_environment", 1, "data"),
    "tokenising": ("gemma_ft.data.tokenise.encode_batch", 1, "data"),
    "loading the model": ("gemma_ft.training.build.load_model", 1, "data"),
    "evaluating before the first step": ("trl.SFTTrainer.prediction_step", 2, "training"),
    "training": ("trl.SFTTrainer.training_step", 9, "training"),
    "evaluating between steps": ("trl.SFTTrainer.prediction_step", 8 + 4, "training"),
    "saving": ("trl.SFTTrainer._save_checkpoint", 1, "training"),
    "saving for the last time": ("trl.SFTTrainer._save_checkpoint", 3, "training"),
    "saving the adapter": ("gemma_ft.modeling.adapters.save_adapter", 1, "training"),
    "exporting": ("gemma_ft.exporting.folder.checkpoint.write_merge", 1, "exporting"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny) -> Path:
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    chats = write_chats(folder / "chats.jsonl")
    done = start(*words_for(chats, "whole"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "whole"


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_stopped_at_any_stage_goes_on_as_if_it_had_not_been(
    train, whole, monkeypatch, capsys, stage
):
    target, call, recorded = STAGES[stage]
    if stage == "tokenising":  # the tokens of the whole run would be found in the cache
        shutil.rmtree(cache_folder() / "tokens")
    words = words_for(whole.parents[1] / "chats.jsonl", "cut")
    number, code = (signal.SIGINT, 130) if stage == "training" else (signal.SIGTERM, 143)
    with monkeypatch.context() as patch:
        send_at(patch, target, call, number)
        run = train(*words, code=code)
    assert f"interrupted: {number.name}. The same line again goes on." in capsys.readouterr().err
    if recorded is None:
        assert not run.exists()
    else:
        assert status(run) == {"state": "interrupted", "stage": recorded, "reason": number.name}
    assert not (run / "merged").exists()
    train(*words)
    assert status(run)["state"] == "finished"
    assert_same_run(run, whole)


def test_a_stop_costs_no_step_that_is_done(train, whole, monkeypatch):
    words = words_for(
        whole.parents[1] / "chats.jsonl", "cut", "trainer.save_steps=1000", "trainer.eval_steps=null"
    )
    with monkeypatch.context() as patch:
        send_at(patch, "trl.SFTTrainer.training_step", 9, signal.SIGTERM)  # in the fifth step
        run = train(*words, code=143)
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name[0] != "."] == ["step-000005"]


def test_max_hours_stops_as_sigterm_does(train, whole, monkeypatch, capsys):
    words = words_for(whole.parents[1] / "chats.jsonl", "cut")
    from gemma_ft import stopping
    from gemma_ft.training.trainer import RunTrainer

    step = RunTrainer.training_step

    def training_step(self, *args, **kwargs):
        while stopping.requested() is None and self.state.global_step == 4:
            time.sleep(0.01)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", training_step)
        run = train(*words, "trainer.max_hours=0.003", code=143)
    assert "interrupted: trainer.max_hours has passed" in capsys.readouterr().err
    assert status(run)["state"] == "interrupted"
    train(*words)  # the limit may change
    assert_same_run(run, whole)


def begin(words: list[str], cwd: Path, **more: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gemma_ft", *words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def read_rest(process: subprocess.Popen[str]) -> str:
    """Wait for its end. `communicate` would leave out what `readline` has read ahead."""
    with process:
        return process.stderr.read()


def kill_at_random_times(whole: Path, cwd: Path, numbers: list[signal.Signals], seed: int) -> None:
    """Kill a run again and again, and compare it, once it is through, with the one that was not."""
    chance = random.Random(seed)
    chats, more = whole.parents[1] / "chats.jsonl", ["trainer.save_steps=1", "trainer.eval_steps=null"]
    began = time.monotonic()
    assert start(*words_for(chats, "alone", *more), cwd=cwd).returncode == 0
    seconds = time.monotonic() - began
    words, run = words_for(chats, "killed", *more), cwd / "outputs" / "killed"
    for number in numbers:
        process = begin(words, cwd)
        try:
            process.wait(chance.uniform(0.2, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert "Traceback" not in err, err
        assert process.returncode in (0, -number, 128 + number), err
    last = start(*words, cwd=cwd)
    assert last.returncode == 0, last.stderr
    assert status(run)["state"] == "finished"
    assert_same_run(run, cwd / "outputs" / "alone")


def test_a_run_that_is_killed_now_and_then_ends_as_one_that_was_not(whole, tmp_path):
    kill_at_random_times(whole, tmp_path, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_is_killed_twenty_times_ends_as_one_that_was_not(whole, tmp_path, number):
    kill_at_random_times(whole, tmp_path, [number] * 20, seed=11)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_the_whole_group_leaves_loading_processes_to_the_last_step(whole, tmp_path, number):
    more = ["+trainer.extra.dataloader_num_workers=1", "trainer.max_steps=300", "trainer.logging_steps=1"]
    words = words_for(whole.parents[1] / "chats.jsonl", "loads", *more, "trainer.eval_steps=null")
    process = begin(words, tmp_path, start_new_session=True)
    assert process.stderr is not None
    while "step 2/300" not in (line := process.stderr.readline()):
        assert line
    os.killpg(process.pid, number)
    err = read_rest(process)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err, err
    assert RunFolder(tmp_path / "outputs" / "loads").steps()


def test_two_processes_stop_at_one_step_and_the_launcher_gives_them_time(whole, tmp_path):
    """Started by ourselves, as on a machine with two GPUs."""
    program = tmp_path / "two.py"
    program.write_text(
        "import sys\n"
        "from gemma_ft.training import launch\n"
        "launch.count_gpus = lambda: 2\n"
        "from gemma_ft.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = words_for(whole.parents[1] / "chats.jsonl", "two", "parallel=ddp", "trainer.max_steps=30")
    alone = words_for(whole.parents[1] / "chats.jsonl", "alone", "parallel=ddp", "trainer.max_steps=30")
    line = [sys.executable, str(program)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*line, *words], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "step 2/30" not in said:
        line_said = process.stderr.readline()
        assert line_said, said
        said += line_said
    process.send_signal(signal.SIGTERM)
    said += read_rest(process)
    run = tmp_path / "outputs" / "two"
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert said.count("interrupted: ") == 1
    assert status(run)["state"] == "interrupted"
    assert not (run / "merged").exists()
    for again in (words, alone):
        done = subprocess.run(
            [*line, *again], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
    assert losses(run)
    assert_same_run(run, tmp_path / "outputs" / "alone")
