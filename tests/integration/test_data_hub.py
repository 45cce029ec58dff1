"""Hub data sets, served by a stand-in on the loopback address."""

import json

import pytest
from hub_stand_in import COMMIT, ask_hub, hub_that_refuses, hub_with, silent_hub

ROWS = [{"text": letter} for letter in "abcdefghij"]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)

HUB = """
from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.rows import DataSource
from gemma_ft.data.sources.opening import load_split, open_source
dataset = DatasetConfig(source=DataSource.hub, path="some/quotes", split={split!r}, {keys})
source = open_source(dataset)
found = load_split(source, dataset.split, name=dataset.path, key="dataset.split")
rows = [(row.where, row.values["text"]) for row in found]
print(rows, source.revision)
"""
FILES = {"README.md": "# quotes", "train.jsonl": JSONL, "test.jsonl": '{"text": "z"}\n'}


def hub_code(split, keys=""):
    return HUB.format(split=split, keys=keys)


def test_a_hub_data_set_is_read_by_split_and_slice_at_a_known_commit(tmp_path):
    with hub_with(FILES) as address:
        out, err, _ = ask_hub(hub_code("train[-20%:]"), address, tmp_path)
    assert out == f"[('some/quotes[train]:9', 'i'), ('some/quotes[train]:10', 'j')] {COMMIT}"
    assert err == ""


def test_a_hub_data_set_is_read_from_the_cache_when_the_hub_is_gone(tmp_path):
    with hub_with(FILES) as address:
        first, _, _ = ask_hub(hub_code("test"), address, tmp_path)
    assert first == f"[('some/quotes[test]:1', 'z')] {COMMIT}"
    out, err, _ = ask_hub(hub_code("test"), "http://127.0.0.1:9", tmp_path)
    assert out == first
    assert (
        "dataset.path=some/quotes: the hub does not answer or refuses; the copy in the cache is used." in err
    )
    assert ask_hub(hub_code("test"), "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")[:2] == (first, "")


def test_another_revision_than_the_cached_one_is_not_passed_off_as_it(tmp_path):
    code = hub_code("test", "revision='v2'")
    with hub_with(FILES) as address:
        ask_hub(hub_code("test"), address, tmp_path)
        out, _, _ = ask_hub(code, address, tmp_path, HF_HUB_OFFLINE="1")
        assert out.startswith(
            "HubError dataset.path=some/quotes is not in this machine's cache, and HF_HUB_OFFLINE"
        )
        ask_hub(code, address, tmp_path)
        out, _, _ = ask_hub(code, address, tmp_path, HF_HUB_OFFLINE="1")
    assert out.endswith(COMMIT)


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        (
            FILES,
            hub_code("dev"),
            "DataError dataset.split=dev is not in some/quotes, which has: train, test. Choose",
        ),
        (
            FILES,
            hub_code("train", "config='zz'"),
            "DataError dataset.config=zz does not fit some/quotes: BuilderConfig 'zz' not found. Avail",
        ),
        (
            {"README.md": "# nothing"},
            hub_code("train"),
            "HubError dataset.path=some/quotes could not be had from the hub: EmptyDatasetError",
        ),
        (
            {"README.md": "# broken", "train.jsonl": "{a\n"},
            hub_code("train"),
            "DataError dataset.path=some/quotes cannot be read: JSON parse error: Missing a name",
        ),
    ],
    ids=["split", "config", "empty", "broken"],
)
def test_a_hub_data_set_that_does_not_fit_is_one_line(files, code, message, tmp_path):
    with hub_with(files) as address:
        out, err, _ = ask_hub(code, address, tmp_path)
    assert out.startswith(message)
    assert "\n" not in out
    assert err == ""


def test_a_gated_data_set_names_its_own_page(tmp_path):
    with hub_that_refuses(403, X_Error_Code="GatedRepo") as address:
        out, _, _ = ask_hub(hub_code("train"), address, tmp_path)
    assert out.startswith(
        "HubError dataset.path=some/quotes is refused: this account has not accepted its licence."
    )
    assert "https://huggingface.co/datasets/some/quotes " in out


def test_a_silent_hub_does_not_hold_up_a_data_set(tmp_path):
    with silent_hub() as address:
        out, _, seconds = ask_hub(hub_code("train"), address, tmp_path)
    assert out.startswith("HubError dataset.path=some/quotes is not in this machine's cache, and the hub (")
    assert seconds < 10


STREAM = "streaming=True"
CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: 100
    num_examples: 10
  - name: test
    num_bytes: 10
    num_examples: 1
---
# quotes
"""


SLICES = {
    "# quotes": {"train[2:4]": [(3, "c"), (4, "d")], "train[8:]": [(9, "i"), (10, "j")]},
    CARD: {"train[-20%:]": [(9, "i"), (10, "j")], "train[:1]+train[-1:]": [(1, "a"), (10, "j")]},
}


@pytest.mark.parametrize("card", SLICES, ids=["counts unknown", "counts on the card"])
def test_a_stream_is_read_by_split_and_slice_at_a_known_commit(card, tmp_path):
    code = "\n".join(hub_code(split, STREAM) for split in SLICES[card])
    with hub_with({**FILES, "README.md": card}) as address:
        out, err, _ = ask_hub(code, address, tmp_path)
    assert out.splitlines() == [
        f"{[(f'some/quotes[train]:{number}', text) for number, text in rows]} {COMMIT}"
        for rows in SLICES[card].values()
    ]
    assert err == ""


def test_the_same_commit_is_one_identity_streamed_or_downloaded(tmp_path):
    code = """
from gemma_ft.config.rows import DataSource, RowsConfig
from gemma_ft.data.sources.opening import open_source
for streaming in (False, True):
    source = open_source(RowsConfig(source=DataSource.hub, path="some/quotes", streaming=streaming))
    print(source.identity("train"))
"""
    with hub_with(FILES) as address:
        out, _, _ = ask_hub(code, address, tmp_path)
    first, second = out.splitlines()
    assert first == second == str({"repo": "some/quotes", "config": None, "commit": COMMIT})


@pytest.fixture(scope="module")
def long_file():
    return "".join(json.dumps({"text": str(number % 10) * 1000}) + "\n" for number in range(60_000))


def test_a_stream_does_not_download_what_is_not_read(long_file, tmp_path):
    served = []
    with hub_with({"README.md": "# long", "train.jsonl": long_file}, served) as address:
        out, _, _ = ask_hub(hub_code("train[:2]", STREAM), address, tmp_path)
    assert "some/quotes[train]:2" in out
    assert sum(size for name, size in served if name == "train.jsonl") < 0.8 * len(long_file)
    assert not list(tmp_path.rglob("*.arrow"))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size > 1_000_000]


def test_a_connection_that_is_lost_on_the_way_is_one_line(long_file, tmp_path):
    at_once = "import time\ntime.sleep = lambda seconds: None\n"
    with hub_with({"README.md": "# long", "train.jsonl": long_file}, hang_up_at=20_000_000) as address:
        out, _, _ = ask_hub(at_once + hub_code("train", STREAM), address, tmp_path)
    assert out.startswith("HubError some/quotes[train] after row ")
    assert "the connection to the hub is lost (" in out
    assert out.endswith("Start again, or leave out dataset.streaming: a download goes on where it stopped.")
    assert "\n" not in out


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        (
            FILES,
            hub_code("train[-2:]", STREAM),
            "DataError dataset.streaming=true cannot slice some/quotes[train] in percent or from the end: "
            "its card does not say how many there are. Slice by row, e.g. train[:1000].",
        ),
        (
            FILES,
            hub_code("dev", STREAM),
            "DataError dataset.split=dev is not in some/quotes, which has: train, test. Choose one.",
        ),
        (
            FILES,
            hub_code("train", f"{STREAM}, config='zz'"),
            "DataError dataset.config=zz does not fit some/quotes: BuilderConfig 'zz' not found. Avail",
        ),
        (
            {"README.md": "# broken", "train.jsonl": JSONL + "{a\n"},
            hub_code("train", STREAM),
            "DataError some/quotes[train] after row 0: cannot be read (JSON parse error: Missing a name",
        ),
        (
            {"README.md": "# nothing"},
            hub_code("train", STREAM),
            "HubError dataset.path=some/quotes could not be had from the hub: EmptyDatasetError",
        ),
    ],
    ids=["count", "split", "config", "broken", "empty"],
)
def test_a_stream_that_does_not_fit_is_one_line(files, code, message, tmp_path):
    with hub_with(files) as address:
        out, err, _ = ask_hub(code, address, tmp_path)
    assert out.startswith(message)
    assert "\n" not in out
    assert "Traceback" not in err


def test_nothing_is_streamed_from_a_hub_that_does_not_answer(tmp_path):
    out, _, _ = ask_hub(hub_code("train", STREAM), "http://127.0.0.1:9", tmp_path)
    assert out.startswith("HubError dataset.path=some/quotes is not in this machine's cache, and the hub (")
