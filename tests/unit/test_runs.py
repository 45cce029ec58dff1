"""The run folder: what it says, and that nothing half-written stands in it."""

import pytest

from gemma_ft.config.schema import ModelConfig, RunConfig
from gemma_ft.errors import RunError
from gemma_ft.runs import RunFolder, Stage, State, open_run, read_json, write_json, write_text
from gemma_ft.training.identity import identity


def test_status_comes_back_as_it_was_written(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_status() is None
    run.write_status(State.failed, Stage.training, "no space")
    status = run.read_status()
    assert (status.state, status.stage, status.reason) == (State.failed, Stage.training, "no space")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_metrics_after_a_checkpoint_are_forgotten_and_torn_lines_left_out(tmp_path):
    run = RunFolder(tmp_path)
    before, after = {"step": 0, "sample": "before"}, {"step": 20, "sample": "after"}
    for record in (before, {"step": 0}, {"step": 10}, {"step": 10, "train_runtime": 1}, after):
        run.append_metrics(record)
    with run.metrics.open("a") as file:
        file.write('{"step": 3')
    run.forget_metrics_after(2)
    assert run.read_metrics() == [before, {"step": 0}, {"step": 10}]
    run.forget_metrics_after(0)
    assert run.read_metrics() == []


def test_checkpoints_are_listed_by_step_and_half_written_ones_are_not(tmp_path):
    run = RunFolder(tmp_path)
    for name in ("step-000100", "step-000020", ".writing", "step-1.partial"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.steps() == [20, 100]


def test_setting_aside_never_overwrites_an_older_folder(tmp_path):
    for number in (1, 2):
        (tmp_path / "x").mkdir()
        assert RunFolder(tmp_path / "x").set_aside() == tmp_path / f"x.old-{number}"


def test_identity_is_what_changes_the_weights():
    config, other = RunConfig(name="a"), RunConfig(name="b", output_dir="elsewhere")
    other.export.max_shard_size = "1GB"
    other.trainer.save_steps = 7
    assert identity(config) == identity(other)
    other.trainer.learning_rate = 1.0
    assert identity(config) != identity(other)


def test_the_base_is_pinned_to_the_commit_that_the_run_began_with(tmp_path):
    run = RunFolder(tmp_path)
    asked = ModelConfig(path="google/gemma-2b", revision="main")
    assert run.pin(asked) == asked
    write_json(run.data, {"model": {"path": "google/gemma-2b", "revision": "0" * 40}})
    assert run.pin(asked).revision == "0" * 40
    assert run.pin(ModelConfig(path="elsewhere")).revision is None


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        open_run(tmp_path)


def test_torn_json_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match="is not readable JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[]", '{"state": "foo", "stage": "x"}', "{}"])
def test_a_status_that_is_none_is_said(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(RunError, match=r"status\.json"):
        RunFolder(tmp_path).read_status()
