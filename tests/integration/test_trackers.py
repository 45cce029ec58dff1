"""TensorBoard and Trackio: their files, what they show, and that nobody is asked for anything."""

import json
import sqlite3

import pytest
from program import losses, start, status
from test_silence import watched

QUICK = [
    "model=tiny",
    "trainer=debug",
    "trainer.max_steps=4",
    "trainer.logging_steps=2",
    "trainer.save_steps=2",
]
SILENT = """
import os; os.environ["HF_TOKEN"] = "hf_" + "a" * 34
import gemma_ft
words = ["recipe=quickstart", "trainer.max_steps=2", "dataset.max_rows=50", "export=none"]
for tracker in ("tensorboard", "trackio"):
    gemma_ft.train(gemma_ft.compose(*words, f"tracking={tracker}", f"name={tracker}"))
"""


def tags(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def rows(run):
    database = sqlite3.connect(run / "trackio" / "gemma_ft.db")
    found = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    database.close()
    return [(name, step, json.loads(metrics)) for name, step, metrics in found]


def logged(run):
    """List the numbers of metrics.jsonl by the names that trackers know."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float):
                name = f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
                found.setdefault(name, []).append((record["step"], pytest.approx(value)))
    return found


def test_a_sweep_over_trackers_keeps_each_run_apart_and_inside_its_folder(chats, tiny, tmp_path):
    words = [*QUICK, "dataset=local", f"dataset.path={chats}", "name=x", "dataset.eval_fraction=0.1"]
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tiny.parents[1])}
    done = start("-m", *words, "tracking=trackio,tensorboard", "seed=1,2", cwd=tmp_path, env=home)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "outputs").glob("x*"))
    assert len(runs) == 4
    for run in runs:
        assert status(run)["state"] == "finished"
        if (run / "tensorboard").is_dir():
            assert tags(run / "tensorboard") == logged(run)
        else:
            told = rows(run)
            assert {name for name, _, _ in told} == {run.name}
            assert [metrics["train/loss"] for _, _, metrics in told if "train/loss" in metrics] == losses(run)
    assert sum((run / "tensorboard").is_dir() for run in runs) == 2
    assert "Trackio" not in done.stdout + done.stderr
    assert not (tmp_path / "home").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "outputs"]


def test_no_connection_is_tried_for_a_tracker_that_is_a_folder(tiny, tmp_path):
    done, tried = watched(SILENT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "tensorboard" / "tensorboard").is_dir()
    assert (tmp_path / "outputs" / "trackio" / "trackio").is_dir()
    assert tried == ""
