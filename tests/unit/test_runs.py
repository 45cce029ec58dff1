"""The run folder: what it says, and that nothing half-written stands in it."""

import errno
import os
import subprocess
import sys
import threading
from contextlib import suppress

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


def full_disk(monkeypatch):
    """Refuse new files and whatever makes a file longer, as a full disk does."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)


def test_a_failure_on_a_full_disk_is_still_recorded(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.write_status(State.running, Stage.training)
    full_disk(monkeypatch)
    reason = "TrainingError: no space left " * 3  # longer than what stands there
    run.write_status(State.failed, Stage.training, reason)
    assert run.read_status().reason == reason
    run.write_status(State.failed, Stage.training)
    assert run.read_status().reason is None
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_status_is_never_torn_on_a_full_disk(tmp_path, monkeypatch):
    """One write of at least the old size: whoever reads it meets the old text or the new."""
    run = RunFolder(tmp_path)
    run.write_status(State.running, Stage.training, "long " * 20)
    full_disk(monkeypatch)
    write, sizes = os.write, []
    monkeypatch.setattr("os.write", lambda handle, text: sizes.append(len(text)) or write(handle, text))
    before = run.status.stat().st_size
    run.write_status(State.failed, Stage.training)
    assert sizes == [before]


def test_a_disk_that_refuses_even_that_is_told(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):  # there is no status to write over
        run.write_status(State.failed, Stage.training)
    monkeypatch.undo()
    run.write_status(State.running, Stage.training)
    full_disk(monkeypatch)
    monkeypatch.setattr("os.write", lambda handle, text: 0)
    with pytest.raises(OSError, match="No space left on device"):
        run.write_status(State.failed, Stage.training)


def test_what_is_no_number_is_no_held_out_loss(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"eval_loss": 2.5}\n{"eval_loss": "low"}\n{"eval_loss": null}\n{"loss": 1.0}\n')
    assert run.held_out_losses() == [2.5]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is refused here: it takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk):
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass


def test_a_disk_that_is_really_full_keeps_its_records_whole(small_disk):
    run = RunFolder(small_disk)
    run.lock()
    run.write_status(State.running, Stage.training)
    run.append_metrics({"step": 1})
    fill(small_disk)
    run.write_status(State.failed, Stage.training, "TrainingError: the disk is full")
    assert run.read_status().reason == "TrainingError: the disk is full"
    record = {"step": 2, "text": "x" * 10_000}  # more than is left of the block
    with pytest.raises(OSError, match="No space left on device"):
        run.append_metrics(record)
    assert run.metrics.read_text() == '{"step": 1}\n'
    (small_disk / "filler").unlink()
    run.append_metrics(record)
    assert run.read_metrics() == [{"step": 1}, record]
    run.unlock()


def test_a_record_never_joins_a_torn_line(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    run.append_metrics({"step": 3})
    assert run.read_metrics() == [{"step": 1}, {"step": 3}]


def test_a_record_that_is_cut_by_a_full_disk_is_taken_back(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1})
    before = run.metrics.read_bytes()
    opened = type(run.metrics).open

    class Short:
        """A file that takes ten bytes."""

        def __init__(self, file):
            self.file, self.left = file, 10

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(text[: self.left])
            self.left -= written
            return written

    monkeypatch.setattr(type(run.metrics), "open", lambda *words, **more: Short(opened(*words, **more)))
    with pytest.raises(OSError, match="No space left on device"):
        run.append_metrics({"step": 2})
    monkeypatch.undo()
    assert run.metrics.read_bytes() == before


def test_two_threads_that_write_a_status_at_once_leave_a_whole_one(tmp_path):
    run, failures = RunFolder(tmp_path), []

    def write(reason):
        try:
            for _ in range(200):
                run.write_status(State.interrupted, Stage.training, reason)
                assert run.read_status().reason in reasons
        except Exception as error:
            failures.append(error)

    reasons = ["a" * 10, "b" * 3000]
    threads = [threading.Thread(target=write, args=(reason,)) for reason in reasons]
    for thread in threads:
        thread.start()
    write(reasons[0])
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("model", ["x", None, [], {"path": "google/gemma-2b", "revision": 7}])
def test_odd_data_json_pins_nothing(tmp_path, model):
    run = RunFolder(tmp_path)
    write_json(run.data, {"model": model})
    asked = ModelConfig(path="google/gemma-2b", revision="main")
    assert run.pin(asked) == asked
