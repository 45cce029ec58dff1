"""Runs that are stopped, often at awkward steps, end bit for bit as those that were not.

The whole matrix takes some minutes: `pytest -m slow tests/integration/test_resume_exact.py`.
"""

import json
import logging
import os
import signal
import sys
from itertools import product
from pathlib import Path

import pytest
from program import assert_same_tensors, status, tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

CLOCK = ("tokens_per_second", "peak_memory_bytes", "_runtime", "_per_second")
TRAINER = "gemma_ft.training.trainer.RunTrainer"
TRL = "trl.SFTTrainer"


def words_for(chats: Path, name: str, *more: str) -> list[str]:
    """Eight steps in two epochs or more, with a log line at 1, 4 and 8."""
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        "dataset.eval_fraction=0.2",
        "trainer.max_length=64",
        "trainer.max_steps=8",
        "trainer.save_steps=100",
        "trainer.global_batch_size=10",
        "trainer.micro_batch_size=2",
        "trainer.logging_steps=4",
        "trainer.learning_rate=1e-2",
        "trainer.neftune_noise_alpha=5",
        "adapter.dropout=0.1",
        "export=none",
        *more,
    ]


def stop(*_: object) -> None:
    """Ask this process to stop, as a scheduler does."""
    os.kill(os.getpid(), signal.SIGTERM)


def kill(*_: object) -> None:
    """End the run at once, as kill -9 would: nothing is saved any more."""
    raise KeyboardInterrupt


def at_step(patch: pytest.MonkeyPatch, step: int, what=stop) -> None:
    """Do something at the end of a step, before anything else is done there."""
    from gemma_ft.training.trainer import RunTrainer

    finish = RunTrainer._maybe_log_save_evaluate

    def finish_step(self, *args, **kwargs):
        if self.state.global_step == step:
            what()
        return finish(self, *args, **kwargs)

    patch.setattr(RunTrainer, "_maybe_log_save_evaluate", finish_step)


def at_call(patch: pytest.MonkeyPatch, target: str, number: int, what=stop) -> None:
    """Do something when a function or method is called for the n-th time."""
    from importlib import import_module

    place, _, name = target.rpartition(".")
    module, _, owner = place.rpartition(".")
    owner = getattr(import_module(module), owner) if owner[0].isupper() else import_module(place)
    function, calls = getattr(owner, name), []

    def called(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            what()
        return function(*args, **kwargs)

    patch.setattr(owner, name, called)


def records(run: Path) -> list[dict]:
    """What a run logged, without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith(CLOCK)} for line in lines
    ]


def newest_state(run: Path) -> dict:
    newest = max((run / "checkpoints").glob("step-*[0-9]"))
    return json.loads((newest / "trainer_state.json").read_text())


def assert_same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    folder = "model" if (other / "model").exists() else "adapter"
    assert_same_tensors(one / folder, other / folder)


def cut_at(train, words: list[str], monkeypatch, *steps: int) -> Path:
    """Start a run again and again, each time until it is stopped at the next of these steps."""
    for step in steps:
        with monkeypatch.context() as patch:
            at_step(patch, step)
            run = train(*words, code=143)
        assert newest_state(run)["global_step"] == step
        assert status(run) == {"state": "interrupted", "stage": "training", "reason": "SIGTERM"}
    return run


METHODS = {
    "full": ["quantization=none", "adapter=none", "trainer.learning_rate=1e-3"],
    "lora": ["quantization=none"],
    "int8": ["quantization=int8", "trainer.optim=paged_adamw_8bit"],
    "nf4": ["quantization=nf4", "trainer.optim=adamw_8bit"],
}
IN_CI = {("full", True), ("nf4", False)}


@pytest.mark.parametrize(
    ("method", "packing"),
    [
        pytest.param(*pair, marks=() if pair in IN_CI else pytest.mark.slow)
        for pair in product(METHODS, (False, True))
    ],
    ids=lambda value: {True: "packed", False: "unpacked"}.get(value, value),
)
def test_a_run_that_is_stopped_between_two_logs_goes_on_as_if_it_had_not_been(
    train, chats, monkeypatch, method, packing
):
    more = [*METHODS[method], f"trainer.packing={packing}".lower(), "trainer.eval_steps=5"]
    whole = train(*words_for(chats, "whole", *more))
    words = words_for(chats, "cut", *more)
    cut = cut_at(train, words, monkeypatch, 2, 4, 5)
    train(*words)
    assert_same_run(cut, whole)


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("full", "nf4"))]
)
def test_a_run_that_is_killed_goes_on_from_a_checkpoint_between_two_logs(train, chats, monkeypatch, method):
    more = [*METHODS[method], "trainer.save_steps=3"]
    whole = train(*words_for(chats, "whole", *more))
    with monkeypatch.context() as patch:
        at_step(patch, 5, kill)
        train(*words_for(chats, "cut", *more), code=130)
    cut = train(*words_for(chats, "cut", *more))
    assert_same_run(cut, whole)


EARLY_STOP = [
    "quantization=none",
    "trainer.max_steps=20",
    "trainer.global_batch_size=2",
    "trainer.learning_rate=10",
    "trainer.eval_steps=2",
    "trainer.save_steps=2",
    "trainer.load_best_model_at_end=true",
    "trainer.early_stopping_patience=2",
    "trainer.save_total_limit=1",
]


def test_a_stop_before_each_evaluation_changes_neither_the_best_nor_when_patience_ends(
    train, chats, monkeypatch
):
    """Also before the evaluation that ends the run: it is done on resume, and no step is taken after it."""
    whole = train(*words_for(chats, "whole", *EARLY_STOP))
    evaluated = [record["step"] for record in records(whole) if "eval_loss" in record and record["step"]]
    best, last = newest_best(whole), evaluated[-2]  # the very last is of the best weights
    assert 2 <= best < last < 20
    words = words_for(chats, "cut", *EARLY_STOP)
    cut = cut_at(train, words, monkeypatch, best, best + 1, last)
    assert not newest_state(cut)["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    train(*words)
    assert_same_run(cut, whole)


def newest_best(run: Path) -> int:
    return newest_state(run)["best_global_step"]


MOMENTS = {
    "evaluating before the first step": (f"{TRL}.prediction_step", 2, "quantization=none", None),
    "evaluating after step 4": (f"{TRL}.prediction_step", 6, "trainer.eval_steps=4", 4),
    "evaluating after the last step": (f"{TRL}.prediction_step", 10, "trainer.eval_steps=4", 8),
    "evaluating after training": (f"{TRL}.prediction_step", 6, "quantization=none", 8),
    "the last step": (f"{TRL}.log", 4, "trainer.eval_steps=8", 8),
    "saving step 3": ("gemma_ft.training.checkpoints.check_weights", 1, "trainer.save_steps=3", 3),
    "loading the checkpoint of the last step": (f"{TRAINER}._load_from_checkpoint", 1, "", 8),
}


OFTEN = ("evaluating after the last step",)


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m in OFTEN else pytest.mark.slow) for m in MOMENTS]
)
def test_a_stop_while_evaluating_or_saving_is_followed_as_if_it_had_not_been(
    train, chats, monkeypatch, moment
):
    target, number, more, step = MOMENTS[moment]
    extra = ["quantization=none", *([more] if more and not more.startswith("quant") else [])]
    whole = train(*words_for(chats, "whole", *extra))
    words = words_for(chats, "cut", *extra)
    if moment.startswith("loading"):
        cut_at(train, words, monkeypatch, 8)
    with monkeypatch.context() as patch:
        at_call(patch, target, number)
        cut = train(*words, code=143)
    assert status(cut)["state"] == "interrupted"
    found = sorted(path.name for path in (cut / "checkpoints").glob("step-*"))
    assert found == ([] if step is None else [f"step-{step:06d}"])
    train(*words)
    assert_same_run(cut, whole)


def test_torn_checkpoints_of_a_run_are_left_out_and_never_crowd_out_whole_ones(
    train, chats, monkeypatch, caplog
):
    more = ["quantization=none", "trainer.save_steps=2", "trainer.save_total_limit=2"]
    whole = train(*words_for(chats, "whole", *more))
    words = words_for(chats, "cut", *more)
    cut = cut_at(train, words, monkeypatch, 5)
    (cut / "checkpoints/step-000005/optimizer.pt").write_bytes(b"torn")
    (cut / "checkpoints/step-999999").mkdir()
    caplog.clear()
    with monkeypatch.context() as patch:
        at_step(patch, 7, kill)
        train(*words, code=130)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [("step-999999" in said, "step-000005" in said) for said in warnings] == [(1, 0), (0, 1)]
    assert "going on from outputs/cut/checkpoints/step-000004" in caplog.text
    names = sorted(path.name for path in (cut / "checkpoints").glob("step-*"))
    assert names == ["step-000004", "step-000006", "step-999999.torn"]
    train(*words)
    assert_same_run(cut, whole)


@pytest.mark.slow
def test_where_every_checkpoint_is_torn_the_run_starts_anew(train, chats, monkeypatch, caplog):
    whole = train(*words_for(chats, "whole", "quantization=none"))
    words = words_for(chats, "cut", "quantization=none")
    cut = cut_at(train, words, monkeypatch, 5)
    (cut / "checkpoints/step-000005/files.json").unlink()
    train(*words)
    assert "training starts anew" in caplog.text
    assert_same_run(cut, whole)


def test_a_lost_best_checkpoint_is_said_and_the_best_of_what_follows_counts(
    train, chats, monkeypatch, caplog
):
    words = words_for(chats, "lost", *EARLY_STOP, "trainer.learning_rate=1e-2")
    run = cut_at(train, words, monkeypatch, 5)
    best = run / f"checkpoints/step-{newest_best(run):06d}"
    (best / "adapter_model.safetensors").write_bytes(b"torn")
    train(*words)
    assert "the best checkpoint, of step 4, is lost (adapter_model.safetensors has 4 of" in caplog.text
    assert newest_best(run) > 5


def test_a_checkpoint_of_adapters_holds_no_weight_of_the_base(train, chats):
    run = train(*words_for(chats, "small", "quantization=nf4"))
    checkpoint = run / "checkpoints/step-000008"
    names = {path.name for path in checkpoint.iterdir()}
    assert [name for name in names if name.endswith((".safetensors", ".bin"))] == [
        "adapter_model.safetensors"
    ]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "files.json"} <= names
    assert all("lora_" in name for name in tensors(checkpoint))
    adapter = (run / "adapter/adapter_model.safetensors").stat().st_size
    assert (checkpoint / "adapter_model.safetensors").stat().st_size <= 1.01 * adapter


def test_a_new_rhythm_of_saving_and_logging_counts_from_where_a_run_goes_on(train, chats, monkeypatch):
    words = words_for(chats, "rhythm", "quantization=none", "trainer.save_total_limit=null")
    cut_at(train, words, monkeypatch, 2)
    run = train(*words, "trainer.save_steps=3", "trainer.logging_steps=2")
    assert [record["step"] for record in records(run) if "loss" in record] == [1, 4, 6, 8]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000003", "step-000006", "step-000008"]
