"""Several processes, through real launchers, on CPUs."""

import sys

import pytest
from launching import HERE, TWO_NODES, WORDS, accelerate, begin, end, rows_by_step, torchrun
from program import losses, start, status

STEPS = "trainer.max_steps=4"
TOLERANCE = 5e-6  # five decimals


@pytest.fixture
def watched(tmp_path, chats, tiny):
    """Run the program and have it write down what its processes do; returns the run folder and the notes."""

    def run(name, line=None, *words):
        notes = tmp_path / f"notes-{name}"
        notes.mkdir()
        program = (str(HERE / "watched.py"), f"name={name}", *WORDS, STEPS, f"dataset.path={chats}", *words)
        launcher = (sys.executable, *program) if line is None else line(*program)
        done = end(begin(*launcher, cwd=tmp_path, WATCHED=str(notes)))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("step 1/4") == 1  # one process speaks
        return tmp_path / "outputs" / name, notes

    return run


def assert_same(one, other):
    """Compare what two runs learned, and from what: each a run folder and notes."""
    assert losses(other[0]) == pytest.approx(losses(one[0]), abs=TOLERANCE)
    assert losses(other[0], "eval_loss") == pytest.approx(losses(one[0], "eval_loss"), abs=TOLERANCE)
    assert rows_by_step(other[1]) == rows_by_step(one[1])
    assert len(rows_by_step(one[1])) == 4
    assert status(other[0])["state"] == "finished"


def test_two_processes_train_what_one_trains_and_form_groups_once_all_have_their_rows(watched):
    two = watched("two", lambda *words: torchrun(2, *words))
    assert_same(watched("one"), two)
    assert {file.name: file.read_text() for file in two[1].glob("group-*")} == {
        "group-0": "2",
        "group-1": "2",
    }


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["false", "true"])
def test_any_number_of_processes_of_any_launcher_sees_the_same_batches(watched, packing):
    words = (f"trainer.packing={packing}",)
    one = watched("one", None, *words)
    assert_same(one, watched("two", lambda *line: torchrun(2, *line), *words))
    assert_same(one, watched("four", lambda *line: torchrun(4, *line), *words))
    assert_same(one, watched("accelerated", lambda *line: accelerate(2, *line), *words))
    assert_same(one, watched("alone", lambda *line: torchrun(1, *line), *words))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("launcher", list(TWO_NODES))
def test_two_machines_train_what_one_process_trains(tmp_path, chats, tiny, launcher, processes):
    words = ("-m", "gemma_ft", "name=two", *WORDS, STEPS, f"dataset.path={chats}")
    nodes = [begin(*line, cwd=tmp_path) for line in TWO_NODES[launcher](processes, *words)]
    done = [end(node) for node in nodes]
    assert [node.returncode for node in done] == [0, 0], done[0].stderr + done[1].stderr
    one = start("name=one", *WORDS, STEPS, f"dataset.path={chats}", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    outputs = tmp_path / "outputs"
    for key in ("loss", "eval_loss", "grad_norm"):
        expected = pytest.approx(losses(outputs / "one", key), abs=10 * TOLERANCE)
        assert losses(outputs / "two", key) == expected, key
    assert losses(outputs / "two") == pytest.approx(losses(outputs / "one"), abs=TOLERANCE)
    assert "".join(node.stderr for node in done).count("step 1/4") == 1
