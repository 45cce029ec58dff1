"""What a tracker may do to a run, how metrics are named there, and who counts as logged in."""

import logging
import threading

import pytest

from gemma_ft.config import schema
from gemma_ft.config.schema import RunConfig, TrackingConfig, TrackingMethod
from gemma_ft.errors import ConfigError, Interrupted
from gemma_ft.runs import RunFolder
from gemma_ft.training import tracking
from gemma_ft.training.trackers import tracker as trackers
from gemma_ft.training.trackers.tensorboard import TensorBoard
from gemma_ft.training.trackers.tracker import Tracker, named
from gemma_ft.training.trackers.weights_and_biases import has_key
from gemma_ft.training.tracking import open_tracking, tracked


class Spy(Tracker):
    name = "spy"

    def __init__(self, fails=None, hangs=None):
        super().__init__()
        self.sent, self.codes, self.fails, self.hangs = [], [], fails, hangs

    def send(self, step, metrics):
        self.sent.append((step, metrics))
        if self.fails:
            raise self.fails

    def finish(self, exit_code):
        self.codes.append(exit_code)
        if self.hangs:
            self.hangs.wait(60)
        if self.fails:
            raise self.fails


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"step": 3, "loss": 1.5, "num_tokens": 7}, {"train/loss": 1.5, "train/num_tokens": 7}),
        ({"step": 3, "eval_loss": 2.0}, {"eval/loss": 2.0}),
        ({"step": 3, "sample": "before", "prompt": "?", "answer": "!", "x": None}, {}),
    ],
)
def test_metrics_have_the_names_that_transformers_gives_them(record, expected):
    assert named(record) == expected


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(caplog):
    caplog.set_level(logging.INFO, "gemma_ft")
    spy = Spy(fails=OSError("no space\nleft."))
    for step in range(3):
        spy.log({"step": step, "loss": 1.0})
    spy.close(exit_code=0)
    assert spy.sent == [(0, {"train/loss": 1.0})]
    assert caplog.messages == [
        "tracking=spy stops: OSError no space left. The run goes on; metrics.jsonl has every number."
    ]


def test_closing_raises_nothing_and_says_what_went_wrong(caplog):
    spy = Spy(fails=RuntimeError("gone"))
    spy.close(exit_code=0)
    assert caplog.messages == ["tracking=spy did not close: RuntimeError gone."]


def test_closing_is_bounded(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "gemma_ft")
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    over = threading.Event()
    Spy(hangs=over).close(exit_code=0)
    over.set()
    assert caplog.messages == ["tracking=spy takes too long to close; what it has not written is lost."]


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (ValueError("x"), 1), (Interrupted("SIGTERM", 143), 143)], ids=str
)
def test_a_tracker_is_closed_with_the_code_that_the_run_ends_in(error, code, monkeypatch, tmp_path):
    spy = Spy()
    monkeypatch.setattr(tracking, "open_tracking", lambda config, run: spy)

    def end():
        with tracked(RunConfig(), RunFolder(tmp_path), writes=True) as tracker:
            assert tracker is spy
            if error is not None:
                raise error

    if error is None:
        end()
    else:
        with pytest.raises(type(error), match=str(error)):
            end()
    assert spy.codes == [code]


def test_only_the_process_that_writes_opens_a_tracker(tmp_path):
    config = RunConfig(name="x", tracking=TrackingConfig(method=TrackingMethod.trackio))
    with tracked(config, RunFolder(tmp_path), writes=False) as tracker:
        tracker.log({"step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_is_opened_that_was_not_asked_for(tmp_path):
    tracker = open_tracking(RunConfig(), RunFolder(tmp_path))
    tracker.log({"step": 1, "loss": 1.0})
    tracker.close(exit_code=0)
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_found_in_netrc(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key("api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert has_key("api.wandb.ai")
    assert not has_key("wandb.example.org")
    (tmp_path / "netrc").write_text("machine is broken")
    assert not has_key("api.wandb.ai")


@pytest.mark.parametrize("method", ["wandb", "tensorboard", "trackio"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(method, monkeypatch):
    section = TrackingConfig(method=TrackingMethod(method))
    assert section.problems() == []
    monkeypatch.setattr(schema, "find_spec", lambda name: None)
    assert section.problems() == [f"tracking={method} needs the {method} package. Run: pip install {method}"]


def test_a_folder_that_is_called_like_a_package_is_none(monkeypatch, tmp_path):
    (tmp_path / "nowhere").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert schema.find_spec("nowhere") is not None
    assert not schema._is_installed("nowhere")


def test_a_project_that_wandb_does_not_take_is_refused():
    section = TrackingConfig(method=TrackingMethod.wandb, project="mine/yours")
    assert section.problems() == [
        "tracking.project=mine/yours is no project of Weights & Biases. "
        "Use at most 128 characters, without / \\ # ? % :"
    ]
    assert TrackingConfig(project="mine/yours").problems() == []


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_forgets_what_lies_beyond_the_checkpoint_that_a_run_goes_on_from(tmp_path):
    first = TensorBoard(tmp_path, "name: x\n")
    for step in (1, 2, 3):
        first.log({"step": step, "loss": float(step)})
    first.close(exit_code=1)
    again = TensorBoard(tmp_path, "name: x\n")
    for step in (3, 4):
        again.log({"step": step, "loss": step + 0.5})
    again.close(exit_code=0)
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)]


def test_tensorboard_keeps_the_loss_of_a_step_that_is_only_evaluated_again(tmp_path):
    first = TensorBoard(tmp_path, "name: x\n")
    first.log({"step": 3, "loss": 3.0})
    first.close(exit_code=1)
    again = TensorBoard(tmp_path, "name: x\n")
    again.log({"step": 3, "eval_loss": 2.0})
    again.close(exit_code=0)
    assert scalars(tmp_path, "train/loss") == [(3, 3.0)]
    assert scalars(tmp_path, "eval/loss") == [(3, 2.0)]


def test_trackio_refuses_a_project_name_in_one_line(tmp_path):
    config = RunConfig(tracking=TrackingConfig(method=TrackingMethod.trackio, project="registry-x"))
    with pytest.raises(
        ConfigError, match=r"^tracking\.project=registry-x is refused by trackio: Project name"
    ):
        open_tracking(config, RunFolder(tmp_path))


def test_trackio_keeps_each_run_in_its_own_folder_and_goes_on_there(tmp_path, caplog, monkeypatch, capsys):
    import sqlite3

    from huggingface_hub import constants

    caplog.set_level(logging.INFO, "gemma_ft")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    offline = constants.HF_HUB_OFFLINE
    for name, steps in (("a", (1, 2)), ("b", (1,)), ("a", (3,))):
        run = RunFolder(tmp_path / name)
        config = RunConfig(name=name, tracking=TrackingConfig(method=TrackingMethod.trackio))
        with tracked(config, run, writes=True) as tracker:
            for step in steps:
                tracker.log({"step": step, "loss": 1.0})
    for name, expected in (("a", [("a", 1), ("a", 2), ("a", 3)]), ("b", [("b", 1)])):
        database = sqlite3.connect(tmp_path / name / "trackio" / "gemma_ft.db")
        assert database.execute("select run_name, step from metrics order by step").fetchall() == expected
        database.close()
    assert "tracking=trackio stays in the run folder: TRACKIO_SPACE_ID is not used." in caplog.messages
    assert offline == constants.HF_HUB_OFFLINE
    assert capsys.readouterr().out == ""
