"""Checkpoints: whole under their name or not there; the newest whole one is chosen, and stays."""

import json
import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from gemma_ft.errors import TrainingError
from gemma_ft.modeling import weights
from gemma_ft.runs import RunFolder
from gemma_ft.training import checkpoints
from gemma_ft.training.checkpoints import newest_whole, publish_checkpoint, rotate, torn_because

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def write(run, step, value=1.0):
    """Leave beside what transformers writes."""
    folder = run.checkpoints / ".writing" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.full((64,), value), "b": torch.zeros(8)}, folder / WEIGHTS)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": torch.arange(100) + step}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": [1] * 50}))
    return folder


def save(run, *steps):
    for step in steps:
        publish_checkpoint(write(run, step), run, step)


def names(run):
    return sorted(path.name for path in run.checkpoints.iterdir())


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def plant_nan(path):
    save_file({"a": torch.full((64,), float("nan")), "b": torch.zeros(8)}, path)


def no_json(path):
    path.write_text("x" * path.stat().st_size)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def leave_empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def leave_file(path):
    shutil.rmtree(path)
    path.write_text("no folder")


STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", WEIGHTS)
TEARS = [
    *((name, tear, reason) for name in STATES for tear, reason in ((cut, " bytes"), (empty, "has 0 of "))),
    *((name, flip, "is not what was written") for name in STATES),
    *((name, remove, "cannot be read (No such file or directory)") for name in STATES),
    ("trainer_state.json", no_json, "is not what was written"),
    (WEIGHTS, plant_nan, "is not what was written"),
    ("files.json", remove, "it has no files.json"),
    ("files.json", cut, "files.json cannot be read"),
    ("files.json", empty, "files.json cannot be read"),
    ("files.json", lambda path: path.write_text("[]"), "files.json cannot be read"),
    ("files.json", lambda path: path.write_text("{}"), "files.json lists nothing"),
    ("files.json", lambda path: path.write_text('{"optimizer.pt": 7}'), "files.json cannot be read"),
    ("", leave_empty_folder, "it has no files.json"),
    ("", leave_file, "it has no files.json"),
]


@pytest.mark.parametrize(
    ("name", "tear", "reason"), TEARS, ids=[f"{name or 'folder'} {tear.__name__}" for name, tear, _ in TEARS]
)
def test_a_torn_checkpoint_is_named_moved_aside_and_the_one_before_it_taken(run, caplog, name, tear, reason):
    save(run, 10, 20)
    assert newest_whole(run, writes=True) == run.step_folder(20)
    torn = run.step_folder(20)
    tear(torn / name if name else torn)

    assert newest_whole(run, writes=False) == run.step_folder(10)
    assert run.steps() == [10, 20]  # who only reads moves nothing
    caplog.clear()
    assert newest_whole(run, writes=True) == run.step_folder(10)

    (said,) = [record.getMessage() for record in caplog.records]
    assert str(torn) in said
    assert name in said
    assert reason in said
    assert names(run) == ["step-000010", "step-000020.torn"]


def test_where_all_are_torn_training_starts_anew_with_a_warning(run, caplog):
    save(run, 10, 20)
    for step in (10, 20):
        empty(run.step_folder(step) / "optimizer.pt")

    assert newest_whole(run, writes=True) is None

    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "training starts anew" in caplog.text
    assert names(run) == ["step-000010.torn", "step-000020.torn"]


def test_a_run_without_checkpoints_says_nothing(run, caplog):
    assert newest_whole(run, writes=True) is None
    assert caplog.text == ""


def test_a_torn_checkpoint_goes_once_a_whole_one_stands_in_its_place(run):
    save(run, 10, 20)
    for _ in range(2):  # torn at the same step again
        empty(run.step_folder(20) / "optimizer.pt")
        newest_whole(run, writes=True)
        save(run, 15)
        assert names(run) == [".writing", "step-000010", "step-000015", "step-000020.torn"]
        save(run, 20)
        assert names(run) == [".writing", "step-000010", "step-000015", "step-000020"]
        shutil.rmtree(run.step_folder(15))


def test_what_a_kill_left_is_swept_by_the_process_that_writes(run):
    save(run, 10)
    write(run, 20)
    shutil.copytree(run.step_folder(10), run.checkpoints / ".step-000005.old")
    (run.checkpoints / ".stray").write_text("x")

    newest_whole(run, writes=False)
    assert len(names(run)) == 4
    assert newest_whole(run, writes=True) == run.step_folder(10)
    assert names(run) == ["step-000010"]


def test_pickled_arguments_do_not_stay_in_a_checkpoint(run):
    save(run, 10)
    assert not (run.step_folder(10) / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("name", "tear", "said"),
    [
        (WEIGHTS, plant_nan, "holds non-finite values, in a"),
        (WEIGHTS, cut, "was not written whole"),
        (WEIGHTS, remove, "was written without any tensor"),
        ("optimizer.pt", flip, "was not written whole"),
        ("optimizer.pt", cut, "was not written whole"),
        ("scheduler.pt", empty, "was not written whole"),
        ("rng_state.pth", cut, "was not written whole"),
        ("trainer_state.json", cut, "was not written whole"),
    ],
)
def test_a_checkpoint_that_was_not_written_whole_never_gets_its_name(run, name, tear, said):
    save(run, 10)
    written = write(run, 20)
    tear(written / name)

    with pytest.raises(TrainingError, match=said) as refused:
        publish_checkpoint(written, run, 20)

    assert name in str(refused.value) or name == WEIGHTS
    assert run.steps() == [10]


@pytest.mark.parametrize(
    ("steps", "kept", "saved", "best", "left"),
    [
        ((1, 2, 3), None, 3, None, [1, 2, 3]),
        ((1, 2, 3), 2, 3, None, [2, 3]),
        ((1, 2, 3), 1, 3, 1, [1, 3]),
        ((1, 2, 3, 9), 1, 3, None, [3, 9]),  # 9 is no checkpoint of this run's
        ((1, 2, 8, 9), 2, 2, None, [1, 2, 8, 9]),
    ],
)
def test_the_checkpoint_that_was_just_saved_stays_and_older_ones_go(run, steps, kept, saved, best, left):
    save(run, *steps)
    rotate(run, kept=kept, saved=saved, best=best)
    assert run.steps() == left


class Killed(BaseException):
    """The end of a process, as the code that runs sees it."""


def kill(*_, **__):
    raise Killed


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_part_of_it(run, monkeypatch):
    save(run, 1, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(weights.shutil, "rmtree", kill)
        with pytest.raises(Killed):
            rotate(run, kept=2, saved=3, best=None)
    assert run.steps() == [2, 3]
    assert newest_whole(run, writes=True) == run.step_folder(3)
    assert names(run) == ["step-000002", "step-000003"]


@pytest.mark.parametrize("place", ["flush_folder", "sync_entries", "shutil.rmtree"])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new_one_or_none(
    tmp_path, monkeypatch, place
):
    beside, final = tmp_path / "beside", tmp_path / "final"
    for folder, text in ((beside, "new"), (final, "old")):
        folder.mkdir()
        for name in "ab":
            (folder / name).write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(f"gemma_ft.modeling.weights.{place}", kill)
        with pytest.raises(Killed):
            weights.publish_folder(beside, final)
    found = {path.read_text() for path in final.glob("*")}
    assert (len(list(final.glob("*"))), len(found)) == (2, 1)
    if beside.exists():
        weights.publish_folder(beside, final)
    assert {path.read_text() for path in final.iterdir()} == {"new"}


@pytest.mark.parametrize("replaces", [True, False])
def test_what_an_earlier_kill_left_of_a_replaced_folder_goes_too(tmp_path, replaces):
    for name, text in (("beside", "new"), ("final", "old"), (".final.old", "older")):
        if name != "final" or replaces:
            (tmp_path / name).mkdir()
            (tmp_path / name / "a").write_text(text)
    weights.publish_folder(tmp_path / "beside", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "a").read_text() == "new"


def test_processes_take_what_the_writing_one_has_found(run, monkeypatch):
    save(run, 10, 20)
    monkeypatch.setattr(checkpoints, "among_others", lambda: True)
    told = []
    monkeypatch.setattr(checkpoints, "told_by_writer", lambda step: told.append(step) or 10)
    assert newest_whole(run, writes=False) == run.step_folder(10)
    assert newest_whole(run, writes=True) == run.step_folder(10)
    assert told == [None, 20]  # only one process reads the checkpoints


def test_a_moved_run_still_has_its_checkpoints(run, tmp_path):
    save(run, 10)
    moved = RunFolder(run.path.rename(tmp_path / "moved"))
    assert newest_whole(moved, writes=True) == moved.step_folder(10)
    assert torn_because(moved.step_folder(10)) is None


def test_what_was_logged_is_on_the_disk_before_a_checkpoint_counts_on_it(run, monkeypatch):
    written, kept, sync = write(run, 1), [], os.fsync

    def keep(handle):
        kept.append(os.fstat(handle).st_ino)
        sync(handle)

    run.append_metrics({"step": 1})
    monkeypatch.setattr(os, "fsync", keep)
    monkeypatch.setattr(checkpoints, "publish_folder", lambda *_: kept.append("published"))
    publish_checkpoint(written, run, 1)
    assert kept.index(run.metrics.stat().st_ino) < kept.index("published")


def test_lines_that_a_checkpoint_counts_on_and_that_are_lost_are_counted(run):
    run.path.mkdir()
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    assert run.forget_metrics_after(2) == 0
    assert run.forget_metrics_after(5) == 3
    run.metrics.unlink()
    assert run.forget_metrics_after(5) == 5
