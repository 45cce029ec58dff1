"""What goes on with a run and what is another one: keys, steps, and who takes the folder."""

import json
import logging
import math
import re
import shutil

import pytest

from gemma_ft.config.compose import config_yaml
from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import RunError
from gemma_ft.runs import RunFolder, Stage, State, write_json
from gemma_ft.training.begin import Beginning, begin_run, claim_folder
from gemma_ft.training.identity import NOT_IDENTITY, differing_keys
from gemma_ft.training.layout import Layout
from gemma_ft.training.steps import read_standing

ALONE = Layout(world_size=1, rank=0, accumulation=1, method=ParallelMethod.single)


def config_of(**trainer):
    config = RunConfig(name="x")
    for key, value in {"max_steps": 100, **trainer}.items():
        setattr(config.trainer, key, value)
    return config


@pytest.fixture
def made(tmp_path):
    """A run that stands at its last step."""

    def make(config, *, stage=Stage.finished, step=100, total=100, epoch=2.0, adapter=True):
        run = RunFolder(tmp_path / "x")
        run.path.mkdir()
        run.config.write_text(config_yaml(config))
        write_json(run.data, {"model": {"path": config.model.path, "revision": "c" * 40}})
        if step is not None:
            run.step_folder(step).mkdir(parents=True)
            state = {"global_step": step, "max_steps": total, "epoch": epoch}
            (run.step_folder(step) / "trainer_state.json").write_text(json.dumps(state))
        if adapter:
            run.adapter.mkdir()
        run.write_status(State.finished if stage is Stage.finished else State.running, stage)
        return run

    return make


@pytest.fixture(autouse=True)
def _whole(monkeypatch):
    """Checkpoints that are made here have no checksums; whether one is whole is tested elsewhere."""
    monkeypatch.setattr("gemma_ft.training.checkpoints.torn_because", lambda folder: None)


def begin(run, config, *, extend=False, overwrite=False):
    return begin_run(run, config, ALONE, overwrite=overwrite, extend=extend)


def test_what_comes_after_training_or_is_told_of_it_may_change(made):
    run = made(config_of(), stage=Stage.training)
    new = config_of(save_steps=7, save_total_limit=None, max_hours=1.0, logging_steps=3, eval_steps=9)
    new.name, new.output_dir = "y", "elsewhere"
    new.tracking.project, new.export.max_shard_size = "mine", "1GB"
    new.trainer.sample_prompt = "Hello"
    new.trainer.extra = {"dataloader_num_workers": 2, "eval_delay": 5.0}
    assert begin(run, new) == Beginning(Stage.data)


def test_every_key_that_may_change_is_one_that_can_be_set():
    import dataclasses

    from gemma_ft.config.sft_arguments import PASSED

    keys = {item.name for item in dataclasses.fields(RunConfig)}
    keys |= {f"trainer.{item.name}" for item in dataclasses.fields(RunConfig().trainer)}
    keys |= {f"parallel.{item.name}" for item in dataclasses.fields(RunConfig().parallel)}
    keys |= {f"trainer.extra.{name}" for name in PASSED}
    assert set(NOT_IDENTITY) - keys == set()


def test_every_other_key_makes_it_another_run(made):
    run = made(config_of())
    new = config_of(learning_rate=1.0, extra={"adam_beta2": 0.9})
    new.dataset.trim = "template"
    words = (
        r"holds a run with other settings: dataset\.trim=template \(there: keep_indent\), "
        r"trainer\.extra\.adam_beta2=0\.9 \(there: null\), trainer\.learning_rate=1\.0 \(there: 0\.0002\)\. "
        r"Keep both with name=x-2, or start anew with --overwrite\.$"
    )
    with pytest.raises(RunError, match=words):
        begin(run, new, extend=True)


def test_an_evaluation_that_decides_is_part_of_the_run():
    best = {"load_best_model_at_end": True, "save_steps": 5}
    changed = differing_keys(config_of(eval_steps=5, **best), config_of(eval_steps=7, **best))
    assert changed == {"trainer.eval_steps": (5, 7)}
    for schedule in ("reduce_lr_on_plateau", "greedy"):
        follows = {"lr_scheduler_type": schedule}
        assert differing_keys(config_of(eval_steps=5, **follows), config_of(eval_steps=7, **follows))


def test_another_path_of_the_base_is_another_run_unless_it_is_the_same_folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "a.jsonl").write_text("")
    config = config_of()
    config.model.path, config.dataset.path = "base", "a.jsonl"
    run = made(config)
    config.model.path, config.dataset.path = str(tmp_path / "base"), str(tmp_path / "a.jsonl")
    assert begin(run, config).stage is Stage.finished
    config.model.path = "other"
    with pytest.raises(RunError, match=r"Where only the folder of the base has moved, put a link there\.$"):
        begin(run, config)


def test_the_commit_that_a_run_began_with_may_be_named_and_no_other(made):
    run = made(config_of())
    config = config_of()
    config.model.revision = "c" * 40
    assert begin(run, config).stage is Stage.finished
    config.model.revision = "d" * 40
    with pytest.raises(RunError, match=r"model\.revision=dddd"):
        begin(run, config)


@pytest.mark.parametrize("stage", [Stage.training, Stage.trained, Stage.exporting, Stage.finished])
def test_more_steps_need_extend_where_the_schedule_knows_their_number(made, stage):
    run = made(config_of(), stage=stage)
    words = (
        r"trainer\.max_steps=200 \(there: 100\): 200 steps are more than the 100 that the cosine schedule "
        r"of the run in output_dir=\S+ was made for\. Add --extend to stretch it over all of them, "
        r"or keep both with name=x-2"
    )
    with pytest.raises(RunError, match=words):
        begin(run, config_of(max_steps=200))
    assert begin(run, config_of(max_steps=200), extend=True) == Beginning(Stage.data, extends=True)


@pytest.mark.parametrize(
    ("schedule", "warmup", "goes_on"),
    [
        ("constant", 0.03, True),
        ("constant_with_warmup", 10, True),
        ("constant_with_warmup", 0, True),
        ("constant_with_warmup", 0.03, False),
        ("linear", 0, False),
    ],
)
def test_a_constant_rate_goes_on_by_itself(made, schedule, warmup, goes_on):
    kind = {"lr_scheduler_type": schedule, "warmup_steps": warmup}
    run = made(config_of(**kind))
    new = config_of(max_steps=200, **kind)
    if goes_on:
        assert begin(run, new) == Beginning(Stage.data, extends=True)
    else:
        with pytest.raises(RunError, match=rf"the {schedule} schedule of .* Add --extend"):
            begin(run, new)


@pytest.mark.parametrize("extend", [False, True])
def test_fewer_steps_are_refused(made, extend):
    run = made(config_of(), stage=Stage.training, step=20, epoch=0.4)
    words = (
        r"trainer\.max_steps=50 \(there: 100\): 50 steps are fewer than the 100 .* Keep both with name=x-2"
    )
    with pytest.raises(RunError, match=words):
        begin(run, config_of(max_steps=50), extend=extend)


def test_epochs_and_steps_are_compared_as_what_they_come_to(made):
    run = made(config_of(max_steps=-1, num_train_epochs=2.0))  # 50 steps an epoch
    assert begin(run, config_of(max_steps=100)).stage is Stage.finished
    assert begin(run, config_of(max_steps=100, num_train_epochs=9.0)).stage is Stage.finished
    assert begin(run, config_of(max_steps=-1, num_train_epochs=2.5), extend=True).extends
    with pytest.raises(
        RunError, match=r"num_train_epochs=3\.0 \(there: 2\.0\): 150 steps are more than the 100"
    ):
        begin(run, config_of(max_steps=-1, num_train_epochs=3.0))
    with pytest.raises(RunError, match="75 steps are fewer than the 100"):
        begin(run, config_of(max_steps=-1, num_train_epochs=1.5), extend=True)


@pytest.mark.parametrize("accumulation", [1, 3, 16])
@pytest.mark.parametrize("batches", [1, 2, 5, 16, 17, 31, 48, 1000])
def test_the_steps_of_an_epoch_are_found_from_any_checkpoint(tmp_path, batches, accumulation):
    """As transformers 5.23 counts: state.epoch = epoch + (micro-batch + 1) / micro-batches of an epoch."""
    in_epoch = max(math.ceil(batches / accumulation), 1)
    run = RunFolder(tmp_path)
    for step in sorted({1, 2, in_epoch - 1, in_epoch, in_epoch + 1, 7 * in_epoch, 9 * in_epoch + 1} - {0}):
        whole, within = divmod(step - 1, in_epoch)
        epoch = whole + min((within + 1) * accumulation, batches) / batches
        folder = run.step_folder(step)
        folder.mkdir(parents=True)
        state = {"global_step": step, "max_steps": 10**6, "epoch": epoch}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        assert read_standing(run).steps_per_epoch == in_epoch


def test_an_extension_that_was_cut_before_its_first_checkpoint_goes_on_with_either_line(made):
    run = made(config_of(max_steps=200), stage=Stage.training)  # the checkpoint is of 100
    for extend in (True, False):
        assert begin(run, config_of(max_steps=200), extend=extend) == Beginning(Stage.data, extends=True)
    assert begin(run, config_of(max_steps=100)) == Beginning(Stage.data)


@pytest.mark.parametrize("stage", [Stage.training, Stage.trained, Stage.exporting])
def test_the_same_extending_line_goes_on_after_a_cut(made, stage):
    run = made(config_of(max_steps=200), stage=stage, step=200, total=200, epoch=4.0)
    beginning = begin(run, config_of(max_steps=200), extend=True)
    assert beginning == Beginning(Stage.data if stage is Stage.training else Stage.trained)


def test_extend_without_more_steps_is_refused(made):
    run = made(config_of())
    words = (
        r"--extend needs more steps than the 100 of the finished run .* Raise trainer\.max_steps, or leave"
    )
    for config in (config_of(), config_of(max_steps=-1, num_train_epochs=2.0)):
        with pytest.raises(RunError, match=words):
            begin(run, config, extend=True)


def test_extend_without_a_run_is_refused(tmp_path):
    for run in (RunFolder(tmp_path / "none"), RunFolder(tmp_path)):
        with pytest.raises(
            RunError, match=r"--extend finds no run in output_dir=\S+\. Leave it out to begin"
        ):
            begin(run, config_of(), extend=True)
    with pytest.raises(RunError, match=r"--overwrite starts it anew\. Leave one of them out"):
        begin(RunFolder(tmp_path), config_of(), extend=True, overwrite=True)


@pytest.mark.parametrize("state", [None, "{", "[]", "{}", '{"global_step": 1, "max_steps": 1, "epoch": 0}'])
def test_a_finished_run_whose_checkpoints_are_gone_cannot_be_extended(made, state):
    run = made(config_of(lr_scheduler_type="constant"))
    if state is None:
        shutil.rmtree(run.checkpoints)
    else:
        (run.step_folder(100) / "trainer_state.json").write_text(state)
    config = config_of(lr_scheduler_type="constant")
    assert begin(run, config).stage is Stage.finished
    words = (
        r"has no checkpoint to train on from, so it cannot be extended "
        r"\(trainer\.max_steps=200 \(there: 100\)\)\. Train the longer run beside it with name=x-2"
    )
    with pytest.raises(RunError, match=words):
        begin(run, config_of(max_steps=200, lr_scheduler_type="constant"))
    with pytest.raises(RunError, match=r"so it cannot be extended\. Train"):
        begin(run, config, extend=True)


def test_a_finished_run_whose_checkpoints_are_torn_cannot_be_extended(made, monkeypatch):
    run = made(config_of())
    monkeypatch.setattr("gemma_ft.training.checkpoints.torn_because", lambda folder: "it is short")
    assert begin(run, config_of()).stage is Stage.finished
    with pytest.raises(RunError, match="has no whole checkpoint to train on from, so it cannot be extended"):
        begin(run, config_of(max_steps=200), extend=True)


def test_a_folder_that_was_only_locked_is_a_new_one(tmp_path):
    run = RunFolder(tmp_path)
    for name in (".lock", ".status.json.partial"):  # what a kill leaves before there is a status
        (tmp_path / name).write_text("")
    assert begin(run, config_of()) == Beginning(Stage.data)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(RunError, match=r"holds files of no run\. Give another name"):
        begin(run, config_of())


def claim(run, config, beginning, *, overwrite=False, extend=False):
    claim_folder(run, config, ALONE, beginning, overwrite=overwrite, extend=extend)


def test_a_start_that_decided_before_another_finished_trains_nothing(made, tmp_path):
    decided = begin(RunFolder(tmp_path / "x"), config_of())
    run = made(config_of())
    before = run.status.read_text()
    with pytest.raises(RunError, match=r"was changed by another process .* Give the same line again"):
        claim(run, config_of(), decided)
    assert not run.locked
    assert run.status.read_text() == before
    with pytest.raises(RunError, match=r"with other settings: trainer\.learning_rate"):
        claim(run, config_of(learning_rate=1.0), decided)
    assert not run.locked


@pytest.mark.parametrize("state", ["new", "unfinished", "trained", "finished"])
def test_of_two_starts_the_second_is_refused_and_leaves_nothing(made, tmp_path, state):
    config = config_of()
    first, second = RunFolder(tmp_path / "x"), RunFolder(tmp_path / "x")
    if state != "new":
        made(config, stage=Stage.training if state == "unfinished" else Stage(state))
    beginning = begin(second, config)
    claim(first, config, begin(first, config))
    before = [(path, path.stat().st_mtime_ns) for path in sorted(first.path.rglob("*"))]
    for overwrite in (False, True):
        with pytest.raises(RunError, match="is in use by another process"):
            claim(second, config, beginning, overwrite=overwrite)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(first.path.rglob("*"))] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_what_is_overwritten_moves_away_and_is_free_there(made, tmp_path):
    run = made(config_of())
    claim(run, config_of(learning_rate=1.0), Beginning(Stage.data), overwrite=True)
    assert [path.name for path in run.path.iterdir()] == [".lock"]
    old = RunFolder(tmp_path / "x.old-1")
    assert old.read_status().stage is Stage.finished
    assert old.holder() is None
    old.lock()


def test_what_an_extension_does_to_the_schedule_is_said_once(made, caplog):
    caplog.set_level(logging.INFO)
    run, config = made(config_of()), config_of(max_steps=200)
    claim(run, config, begin(run, config, extend=True), extend=True)
    (said,) = caplog.messages
    assert said == (
        "extending the run from 100 to 200 steps; schedule cosine: it is stretched over all of them, so the "
        "learning rate jumps at step 101, and the result is not that of a run that was begun with so many"
    )


def test_a_constant_rate_that_goes_on_is_said_to_stay(made, caplog):
    caplog.set_level(logging.INFO)
    kind = {"lr_scheduler_type": "constant"}
    run, config = made(config_of(**kind)), config_of(max_steps=200, **kind)
    claim(run, config, begin(run, config))
    assert re.fullmatch(
        r"extending the run from 100 .* constant: its rates do not depend .*", *caplog.messages
    )


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be made \(Not a directory\)\. Name another folder"):
        claim(RunFolder(tmp_path / "file" / "x"), config_of(), Beginning(Stage.data))
