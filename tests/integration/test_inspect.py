"""`inspect` as a user starts it: on every source, in pipes and files, with what can go wrong."""

import json
import os
import re
import subprocess
import sys

import pytest
from program import start

from gemma_ft.cli import main

TELL_MODULES = """
import sys, json
from gemma_ft.cli import main
code = main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def told(here, capsys):
    """Inspect in this process; gives what was printed."""

    def run(*words, code=0):
        assert main(["inspect", "model=tiny", *words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"dataset.path={path}"


def talk(question, answer):
    return {"prompt": question, "completion": answer}


def total(page, label):
    return next(line for line in page.splitlines() if line.startswith(f"{label:9} "))[10:]


def test_ones_own_rows_are_shown_by_file_and_line_and_counted(told, chats, here):
    page = told("dataset=local", f"dataset.path={chats}", "--rows", "3")

    places = re.findall(r"^row \d of 3  (.*):(\d+)$", page, re.MULTILINE)
    assert [place for place, _ in places] == [str(chats)] * 3
    for _, line in places:
        assert f"{int(line) - 1}" in page
    assert total(page, "rows") == "40 read; 38 to train on, 2 held out, 0 left out"
    assert "every assistant turn is learned" in page
    assert page.count("\n+ ") >= 3
    assert [path.name for path in here.iterdir()] == ["chats.jsonl"]


def test_the_same_line_gives_the_same_page_and_another_seed_other_rows(told):
    words = ("dataset=chatterbot", "dataset.max_rows=200", "--rows", "2")
    first = told(*words)

    assert told(*words) == first
    assert told(*words, "seed=7").split("\n\ndata")[0] != first.split("\n\ndata")[0]


def test_no_rows_asked_for_gives_the_totals_alone_and_more_than_there_are_all(told, here):
    path = write_rows(here / "mine.jsonl", [talk("Hi", "Hello"), talk("Bye", "See you"), talk("So", "Yes")])
    words = ("dataset=local", path, "dataset.eval_fraction=0")

    assert "row 1" not in told(*words, "--rows", "0")
    assert "row 3 of 3" in told(*words, "--rows", "99")


def test_the_learned_lines_are_the_answers_and_nothing_else(told, here):
    path = write_rows(here / "mine.jsonl", [talk("Who are you", "I am Gemma")])
    page = told("dataset=local", path, "dataset.eval_fraction=0")

    learned = [line[2:].replace("\u2502", "") for line in page.splitlines() if line.startswith("+ ")][1:]
    assert learned == ["I am Gemma<end_of_turn>\u21b5"]


def test_the_other_loss_targets_and_plain_text_are_told(told, here):
    path = write_rows(here / "mine.jsonl", [{"text": "to be or not"}])
    page = told("dataset=local", path, "dataset.eval_fraction=0")
    assert "plain text, learned whole" in page
    assert "  <bos>\n+ " in page

    path = write_rows(here / "talk.jsonl", [talk("a", "b")])
    page = told("dataset=local", path, "dataset.eval_fraction=0", "dataset.loss_on=all")
    assert "every token is learned" in page
    assert "+ <start_of_turn>" in page


def test_dropped_rows_are_told_with_their_places(told, here):
    rows = [talk("a", "b"), talk("c", ""), {"x": 1}, talk("d", None), talk("e", "f")]
    path = write_rows(here / "mine.jsonl", rows)
    page = told("dataset=local", path, "dataset.eval_fraction=0", "dataset.on_bad_row=drop")

    assert total(page, "rows").endswith("2 to train on, 0 held out, 3 left out")
    for line in (2, 3, 4):
        assert f"mine.jsonl:{line}: " in page.split("left out: ", 1)[1]


def test_a_bad_row_that_is_not_dropped_is_one_line(told, here):
    path = write_rows(here / "mine.jsonl", [talk("a", "b"), talk("c", None)])
    error = told("dataset=local", path, code=2)

    assert re.fullmatch(r"error: .*mine\.jsonl:2: null where text must stand.*\n", error)


def test_copies_overlap_and_cuts_are_counted_and_worth_a_look(told, here):
    (here / "data").mkdir()
    rows = [talk(f"q{i}", "yes " * 5) for i in range(9)]
    write_rows(here / "data" / "train.jsonl", [*rows, rows[0], talk("long", "no " * 400)])
    write_rows(here / "data" / "test.jsonl", [rows[8], talk("new", "x")])
    page = told("dataset=local", "dataset.path=data", "dataset.eval_split=test", "trainer.max_length=64")

    assert total(page, "copies").startswith(
        "1 exact (kept); 1 in eval_split as well (left out); near ones not"
    )
    assert "1 row (10%) longer than trainer.max_length=64" in total(page, "length")
    assert total(page, "turns").endswith("learned with their <end_of_turn>, 1 lost it to the cut")
    notes = page.split("worth a look\n")[1]
    assert "  - Cut: 1 row (10%) longer than trainer.max_length=64" in notes
    assert "  - Copies of earlier rows: 1. dataset.duplicates=drop leaves them out." in notes


def test_packing_is_told_as_it_is_and_as_it_would_be(told):
    words = ("dataset=chatterbot", "dataset.max_rows=300", "trainer.max_length=256", "--rows", "0")
    packed = total(told(*words, "trainer.packing=true"), "batches")
    would = total(told(*words), "batches")

    made = re.search(r"packed into (\d+ sequences, \d+% full)", packed)[1]
    assert would.endswith(f"packing would make {made}")


def test_a_mixture_is_told_by_its_parts(told, here):
    for name, word in (("a", "yes"), ("b", "no")):
        write_rows(here / f"{name}.jsonl", [talk(f"{name}{i}", f"{word} {i}") for i in range(20)])
    parts = [f"dataset.mixture.{name}.path={here / name}.jsonl" for name in "ab"]
    page = told("dataset=mixture", *parts, "dataset.mixture.a.weight=3", "dataset.mixture_weights=rows")

    assert "mixture: weights are shares of rows" in page
    assert re.search(r"^ +75% .* a$", page, re.MULTILINE)


def test_the_page_is_written_whole_beside_the_text(told, here):
    page = told("dataset=chatterbot", "dataset.max_rows=100", "--rows", "2", "--html", "page.html")
    written = (here / "page.html").read_text(encoding="utf-8")

    assert page.endswith("\npage: page.html\n")
    assert [path.name for path in here.iterdir()] == ["page.html"]
    assert written.startswith("<!doctype html>")
    assert written.count('<article class="row">') == 2
    for label in ("data", "rows", "tokens", "length"):
        assert total(page, label) in written.replace("&#x27;", "'")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--html", "."], r"--html=\. names no file\. Write e\.g\. --html=page\.html\."),
        (["--html", ".."], r"--html=\.\. is a folder\. Name a file in it, e\.g\. --html=\.\./page\.html\."),
        (
            ["--html", "no/page.html"],
            r"--html=no/page\.html is in a folder that does not exist\. Make no first\.",
        ),
        (["--html", "/dev/null"], r"--html=/dev/null is no ordinary file\. Name another one\."),
        (["--html", ""], r"--html= names no file\. .*"),
        (["--html", "x" * 300], r"--html=x+ cannot be written \(File name too long\)\. Name another place\."),
        (
            ["--html", "chats.jsonl/page.html"],
            r"--html=chats\.jsonl/page\.html is in chats\.jsonl, which is no folder\. .*",
        ),
        (["--html", "chats.jsonl"], r"--html=chats\.jsonl is a file already, and no web page\. .*"),
        (["--html", "~nobody-here/x.html"], r"--html=~nobody-here/x\.html begins with the home folder .*"),
        (["--rows", "-1"], r"--rows=-1 must not be negative\. Give 0 for the totals alone\."),
        (["--rows", "many"], r"argument --rows: invalid int value: 'many'\. .*"),
        (["--row=3", "--rows=3"], r"--row=3 is no flag of this command\. Did you mean --rows\?"),
        (["trainer.max_lenght=3"], r"trainer\.max_lenght=3 .*max_length.*"),
        (["dataset.path=nowhere.jsonl"], r"dataset\.path=nowhere\.jsonl does not exist\. .*"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, line, told, chats, here):
    error = told("dataset=local", f"dataset.path={chats}", *words, code=2)

    assert re.fullmatch(f"error: {line}\n", error)
    assert [path.name for path in here.iterdir()] == ["chats.jsonl"]


def test_a_page_takes_the_place_of_an_older_one_only_when_it_is_whole(told, chats, here, monkeypatch):
    (here / "page.html").write_text("<!DOCTYPE html>old")
    told("dataset=local", f"dataset.path={chats}")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    words = ("dataset=local", f"dataset.path={chats}", "--html", "page.html")

    assert "cannot be written (No space left on device)" in told(*words, code=2)
    assert sorted(path.name for path in here.iterdir()) == ["chats.jsonl", "page.html"]
    assert (here / "page.html").read_text() == "<!DOCTYPE html>old"

    monkeypatch.undo()
    monkeypatch.chdir(here)
    told(*words)
    assert (here / "page.html").read_text().startswith("<!doctype html>\n")


def test_the_verb_is_there_in_python(here, chats):
    import gemma_ft

    survey = gemma_ft.inspect(
        gemma_ft.compose("model=tiny", "dataset=local", f"dataset.path={chats}"), rows=2
    )

    assert len(survey.sample) == 2
    assert survey.facts["rows_train"] == 38
    assert "".join(piece.text for piece in survey.sample[0].pieces).startswith("<bos><start_of_turn>user\n")


@pytest.mark.parametrize("packing", ["true", "false"])
def test_neither_model_nor_trainer_is_loaded_nor_a_run_begun(packing, chats, here):
    words = ["inspect", "model=tiny", "dataset=local", f"dataset.path={chats}", f"trainer.packing={packing}"]
    done = subprocess.run(
        [sys.executable, "-c", TELL_MODULES, *words], cwd=here, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "transformers" in modules
    assert {name.split(".")[0] for name in modules} & {"peft", "bitsandbytes", "wandb"} == set()
    assert not any(name.startswith(("trl.trainer", "gemma_ft.training")) for name in modules)
    assert not any(name.startswith("transformers.models.gemma.modeling") for name in modules)
    assert [path.name for path in here.iterdir()] == ["chats.jsonl"]


def test_a_pipe_gets_no_colour_unless_it_is_forced(chats, here):
    words = ("inspect", "model=tiny", "dataset=local", f"dataset.path={chats}", "--rows", "1")

    assert "\x1b" not in start(*words, cwd=here).stdout
    assert "\x1b[1;32m" in start(*words, cwd=here, env={"FORCE_COLOR": "1"}).stdout
    plain = start(*words, cwd=here, env={"PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout.isascii()


def test_help_loads_nothing_heavy(here):
    done = subprocess.run(
        [sys.executable, "-c", TELL_MODULES, "inspect", "--help"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    modules = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}

    assert modules & {"torch", "transformers", "datasets", "numpy", "pyarrow", "hydra"} == set()
    assert "--html FILE" in done.stdout
