"""More steps than a run was begun with, and two starts of one run."""

import json
import signal
import subprocess
import sys
import time

import pytest
from program import assert_same_tensors, losses, status, tensors

from gemma_ft.cli import main
from gemma_ft.errors import Interrupted
from gemma_ft.runs import RunFolder

WORDS = [
    "model=tiny",
    "dataset=local",
    "dataset.path=chats.jsonl",
    "quantization=none",
    "adapter.dropout=0.1",
    "trainer.max_length=64",
    "trainer.save_steps=2",
    "trainer.global_batch_size=2",
    "trainer.logging_steps=1",
    "trainer.learning_rate=1e-2",
]


def words_for(name, steps, *more):
    return [f"name={name}", f"trainer.max_steps={steps}", *WORDS, *more]


def test_a_finished_run_is_extended_on_request_and_exported_again(train, chats, capsys):
    run = train(*words_for("longer", 4))
    before, merged = tensors(run / "adapter"), tensors(run / "merged")
    record = (run / "trained.json").read_text()
    capsys.readouterr()
    train(*words_for("longer", 8), code=2)
    assert "8 steps are more than the 4 that the cosine schedule of the run in" in capsys.readouterr().err
    assert status(run)["state"] == "finished"
    train(*words_for("longer", 8), "--extend")
    said = capsys.readouterr().err
    assert "extending the run from 4 to 8 steps; schedule cosine: it is stretched over all of them" in said
    assert status(run)["state"] == "finished"
    assert len(losses(run)) == 8
    rates = losses(run, "learning_rate")
    assert rates[3] < rates[4]  # the old schedule ended; the new one is half-way
    assert any((tensors(run / "adapter")[name] != value).any() for name, value in before.items())
    assert any((tensors(run / "merged")[name] != value).any() for name, value in merged.items())
    assert (run / "trained.json").read_text() != record
    assert json.loads((run / "certificate.json").read_text())["inputs_checked_against_trained_json"]
    train(*words_for("longer", 8), "--extend", code=2)
    assert "--extend needs more steps than the 8 of the finished run" in capsys.readouterr().err
    train(*words_for("longer", 8))
    assert "is finished" in capsys.readouterr().err
    train(*words_for("longer", 10, "export=none"), "--extend")
    assert (
        "merged is of an earlier training. Make it anew with: export outputs/longer"
        in capsys.readouterr().err
    )


def test_an_extension_that_is_cut_goes_on_and_is_not_exported_before(train, chats, capsys, monkeypatch):
    uncut = train(*words_for("uncut", 4, "export=none"))
    train(*words_for("uncut", 8, "export=none"), "--extend")
    cut = train(*words_for("cut", 4, "export=none"))
    with monkeypatch.context() as patch:
        cut_after(patch, step=5)  # before the first checkpoint that knows of 8 steps
        train(*words_for("cut", 8, "export=none"), "--extend", code=130)
    assert main(["export", str(cut)]) == 2
    assert "has not been trained to its end yet" in capsys.readouterr().err
    assert not (cut / "merged").exists()
    assert main(["generate", str(cut), "Hi", "--max-new-tokens", "1"]) == 0
    assert "is of before its run was trained further" in capsys.readouterr().err
    train(*words_for("cut", 8, "export=none"), "--extend")
    assert losses(cut) == losses(uncut)
    assert losses(cut, "learning_rate") == losses(uncut, "learning_rate")
    assert_same_tensors(cut / "adapter", uncut / "adapter")


def cut_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt a run as a kill does, without a last checkpoint, once it has logged a step."""
    from gemma_ft.training.progress import Progress

    log = Progress.on_log

    def on_log(self, args, state, control, logs=None, **rest):
        log(self, args, state, control, logs, **rest)
        if state.global_step >= step:
            raise Interrupted("test", 130)

    patch.setattr(Progress, "on_log", on_log)


def test_a_second_start_of_a_run_that_trains_is_refused_in_one_line(train, tmp_path, chats, capsys):
    words = words_for("twice", 100_000)
    first = subprocess.Popen([sys.executable, "-m", "gemma_ft", *words], cwd=tmp_path)
    run = RunFolder(tmp_path / "outputs" / "twice")
    try:
        while run.holder() is None or run.read_status() is None:
            assert first.poll() is None
            time.sleep(0.05)
        for more in ([], ["--overwrite"]):
            capsys.readouterr()
            train(*words, *more, code=2)
            (said,) = capsys.readouterr().err.splitlines()
            assert f"is in use by another process (process {first.pid} on " in said
        assert run.holder().pid == first.pid
        assert status(run.path)["state"] == "running"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert run.holder() is None
    run.lock()
    run.unlock()
