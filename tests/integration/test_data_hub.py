"""Hub data sets, served by a stand-in on the loopback address."""

import json

import pytest
from hub_stand_in import COMMIT, ask_hub, hub_that_refuses, hub_with, silent_hub

ROWS = [{"text": letter} for letter in "abcdefghij"]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)

HUB = """
from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.rows import DataSource
from gemma_ft.data.sources import load_rows, open_source
dataset = DatasetConfig(source=DataSource.hub, path="some/quotes", split={split!r}, {keys})
rows = [(row.where, row.values["text"]) for row in load_rows(dataset, dataset.split)]
print(rows, open_source(dataset).revision)
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
