"""What status.json says of a run that does not finish."""

import json

import pytest

from gemma_ft import stopping
from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import Interrupted, TrainingError
from gemma_ft.runs import RunFolder, Stage, State
from gemma_ft.training.ending import recorded
from gemma_ft.training.layout import Layout

ALONE = Layout(world_size=1, rank=0, accumulation=1, method=ParallelMethod.single)


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "mine")
    run.path.mkdir()
    run.lock()
    run.write_status(State.running, Stage.training)
    return run


def status(run):
    return json.loads(run.status.read_text())


def test_a_failure_is_recorded_with_its_reason(run):
    with pytest.raises(ValueError, match="odd"), recorded(run, RunConfig(), ALONE):
        raise ValueError("odd")
    assert status(run) == {"state": "failed", "stage": "training", "reason": "ValueError: odd"}


def test_our_own_errors_are_recorded_as_they_are_told(run):
    with pytest.raises(TrainingError), recorded(run, RunConfig(), ALONE):
        raise TrainingError("the loss is nan at step 3.")
    assert status(run)["reason"] == "the loss is nan at step 3."


def fail_while_stopping(run, error):
    """Fail as a run does that was asked to stop and is not at its next step yet."""
    with stopping.listen(), stopping.deferred():
        stopping.interrupt("its time is up")
        with recorded(run, RunConfig(), ALONE):
            raise error


def test_what_gives_way_while_a_run_stops_is_no_failure_of_it(run, caplog):
    """As a loading process does that gets the signal too."""
    with pytest.raises(Interrupted, match="its time is up"):
        fail_while_stopping(run, RuntimeError("DataLoader worker exited unexpectedly"))
    assert status(run) == {"state": "interrupted", "stage": "training", "reason": "its time is up"}
    assert "while stopping: RuntimeError: DataLoader worker exited unexpectedly" in caplog.text


def test_a_full_disk_is_told_even_while_a_run_stops(run):
    full = OSError(28, "No space left on device", str(run.path / "x"))
    with pytest.raises(TrainingError, match="does not fit on its disk"):
        fail_while_stopping(run, full)
    assert status(run)["state"] == "failed"


def test_a_finished_run_stays_finished_where_its_extension_is_refused(run):
    run.write_status(State.finished, Stage.finished)
    with pytest.raises(TrainingError), recorded(run, RunConfig(), ALONE):
        raise TrainingError("other rows")
    assert status(run)["state"] == "finished"


def test_a_status_that_cannot_be_read_does_not_hide_the_failure(run):
    run.status.write_text("{")
    with pytest.raises(ValueError, match="odd"), recorded(run, RunConfig(), ALONE):
        raise ValueError("odd")


def test_a_reason_holds_no_secret(run, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted-value-12")
    with pytest.raises(ValueError, match="planted"), recorded(run, RunConfig(), ALONE):
        raise ValueError("refused planted-value-12")
    assert status(run)["reason"] == "ValueError: refused [secret MY_SERVICE_TOKEN]"
