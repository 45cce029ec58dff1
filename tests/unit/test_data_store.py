import json
import os
import subprocess
import sys

import pytest
from data_tokenizer import build_tokenizer

from gemma_ft.config.dataset import ControlTokens, DatasetConfig, LossTarget, OnBadRow, OnLongRow, Trim
from gemma_ft.config.rows import ColumnsConfig
from gemma_ft.data import store
from gemma_ft.data.prepare import prepare_data
from gemma_ft.errors import DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gemma_ft" / "tokens"


@pytest.fixture
def prepare(rows, cache, monkeypatch):
    """Prepare the rows, and say whether they were tokenised for it."""
    builds = []
    tokenise = store.tokenise

    def counted(*what, **files):
        builds.append(what)
        return tokenise(*what, **files)

    monkeypatch.setattr(store, "tokenise", counted)

    def run(tokenizer=None, max_length=100, seed=1, path=rows, **keys):
        before = len(builds)
        data = prepare_data(
            DatasetConfig(path=str(path), **keys),
            tokenizer=tokenizer or build_tokenizer(),
            max_length=max_length,
            seed=seed,
        )
        return data, len(builds) > before

    return run


def test_rows_are_tokenised_once(prepare, cache):
    first, made = prepare()
    again, made_again = prepare()
    assert (made, made_again) == (True, False)
    assert again.facts == first.facts
    assert again.train[:] == first.train[:]
    assert [path.suffix for path in cache.iterdir() if path.is_file()] == [".lock"]


def test_what_is_chosen_from_the_rows_needs_no_new_tokens(prepare):
    prepare()
    for keys in ({"eval_fraction": 0.5}, {"duplicates": "drop"}, {"max_eval_rows": 1}, {"seed": 2}):
        assert not prepare(**keys)[1], keys


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_on": LossTarget.all},
        {"trim": Trim.template},
        {"on_long_row": OnLongRow.split},
        {"on_bad_row": OnBadRow.drop},
        {"control_tokens": ControlTokens.refuse},
        {"columns": ColumnsConfig(text="prompt")},
        {"max_length": 99},
        {"max_rows": 19},
        {"split": "train[:19]"},
        {"tokenizer": build_tokenizer(merges=[("q", "u")])},
    ],
)
def test_whatever_the_tokens_follow_from_makes_them_anew(prepare, keys):
    prepare()
    assert prepare(**keys)[1]
    assert not prepare()[1]


def test_another_template_makes_the_tokens_anew(prepare):
    prepare()
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template + "{#- another -#}"
    assert prepare(tokenizer=tokenizer)[1]


def test_changed_rows_are_never_taken_from_the_cache(prepare, rows):
    before = rows.stat()
    first, _ = prepare()
    rows.write_text(rows.read_text().replace("answer 7", "ANSWER 7"))
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rows.stat().st_size == before.st_size
    changed, made = prepare()
    assert made
    assert changed.facts["data_sha256"] != first.facts["data_sha256"]


@pytest.mark.parametrize("split", ["train[:15]", "train[50%:]", "train[:5]+train[15:]"])
def test_changed_rows_of_a_folder_are_never_taken_from_the_cache_by_a_slice(prepare, rows, split, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    rows.rename(folder / "train-0.jsonl")
    prepare(path=folder, split=split)
    assert not prepare(path=folder, split=split)[1]
    file = folder / "train-0.jsonl"
    file.write_text(file.read_text().replace("answer", "ANSWER"))
    assert prepare(path=folder, split=split)[1]


def test_changed_code_makes_the_tokens_anew(prepare, monkeypatch):
    prepare()
    monkeypatch.setattr(store, "_code_sha256", lambda: "another version")
    assert prepare()[1]


@pytest.mark.parametrize("name", ["rows.arrow", "report.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_entry_is_made_anew(prepare, cache, name, damage):
    first = prepare()[0].train[:]  # read now: the file that it is read from goes away
    (file,) = cache.glob(f"*/{name}")
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if damage == "cut" else 0])
    again, made = prepare()
    assert made
    assert again.train[:] == first


def test_a_row_that_stops_the_run_leaves_nothing_behind(prepare, rows, cache):
    rows.write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: "):
        prepare()
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_what_a_killed_process_left_is_swept_away(prepare, cache):
    prepare()
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    entry.rename(cache / f".{entry.name}-killed")
    assert prepare()[1]
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [entry.name]


def test_a_full_disk_is_told_and_leaves_nothing_behind(prepare, cache, monkeypatch):
    def full(*what, rows_file, **files):
        rows_file.write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "tokenise", full)
    with pytest.raises(
        DataError, match=r"cannot hold the tokens \(No space left on device\)\. Free some space"
    ):
        prepare()
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_replaced(prepare, cache, caplog):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file stands there")
    data, made = prepare()
    assert made
    assert data.train.num_rows == 19
    assert "cannot be written" in caplog.text


def test_processes_that_start_together_tokenise_once(rows, cache, tmp_path):
    script = tmp_path / "prepare.py"
    script.write_text(
        "import sys, time, logging\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "from data_tokenizer import build_tokenizer\n"
        "from gemma_ft.config.dataset import DatasetConfig\n"
        "from gemma_ft.data import store\n"
        "from gemma_ft.data.prepare import prepare_data\n"
        "tokenise = store.tokenise\n"
        "def slow(*what, **files):\n"
        "    print('made', flush=True)\n    time.sleep(1)\n    return tokenise(*what, **files)\n"
        "store.tokenise = slow\n"
        f"dataset = DatasetConfig(path={str(rows)!r})\n"
        "data = prepare_data(dataset, tokenizer=build_tokenizer(), max_length=50, seed=1, packing=True)\n"
        "print('rows', data.rows.num_rows, data.train.num_rows)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    started = [
        subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=100)[0] for process in started]
    assert sum("made" in text for text in printed) == 1
    assert len({text.splitlines()[-1] for text in printed}) == 1


@pytest.mark.parametrize("content", ["{}", "[]", "null", "7", '{"rows": 19}'])
def test_an_entry_with_a_strange_report_is_made_anew(prepare, cache, content):
    prepare()
    (file,) = cache.glob("*/report.json")
    file.write_text(content)
    assert prepare()[1]


def test_packed_rows_that_a_crash_left_torn_are_packed_anew(rows, cache):
    dataset = DatasetConfig(path=str(rows))

    def packed():
        data = prepare_data(dataset, tokenizer=build_tokenizer(), max_length=100, seed=1, packing=True)
        return data.train[:]

    first = packed()
    for file in cache.glob("*/packed-*.arrow"):
        file.write_bytes(file.read_bytes()[:300])
    assert packed() == first
