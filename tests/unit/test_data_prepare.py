import json

import pytest
from data_tokenizer import build_tokenizer

from gemma_ft.config.dataset import DatasetConfig, LossTarget
from gemma_ft.config.rows import DataSource
from gemma_ft.data.holdout import hold_out
from gemma_ft.data.prepare import prepare_data
from gemma_ft.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Prepare rows that are given as texts, or files of them."""

    def run(files, *, max_length=1000, seed=1, **keys):
        files = files if isinstance(files, dict) else {"train": files}
        for stem, texts in files.items():
            rows = [{"prompt": text, "completion": f"{text}!"} for text in texts]
            (tmp_path / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = DatasetConfig(path=str(tmp_path), **keys)
        return prepare_data(dataset, tokenizer=tokenizer, max_length=max_length, seed=seed)

    return run


@pytest.fixture
def prompts(tokenizer):
    """Give back the prompts of a prepared table."""

    def read(table):
        return [
            tokenizer.decode(ids).split("\n")[1].removesuffix("<end_of_turn>") for ids in table["input_ids"]
        ]

    return read


TEXTS = [f"question {i}" for i in range(200)]


def test_rows_become_ids_and_labels_in_the_order_of_the_file(prepare, prompts):
    data = prepare(["b", "a", "c"], eval_fraction=0)
    assert data.held_out is None
    assert prompts(data.train) == ["b", "a", "c"]
    assert data.train.column_names == ["input_ids", "labels"]
    assert data.train.features["input_ids"].feature.dtype == "int32"
    assert all(len(row["input_ids"]) == len(row["labels"]) for row in data.train)


def test_a_share_of_the_distinct_rows_is_held_out_and_never_trained_on(prepare, prompts):
    data = prepare(TEXTS + TEXTS[:50], eval_fraction=0.1)
    held, train = prompts(data.held_out), prompts(data.train)
    assert len(set(held)) == 20
    assert set(held).isdisjoint(train)
    assert len(held) + len(train) == 250
    assert data.facts["rows_held_out"] == data.facts["rows_evaluated"] == len(held)
    assert data.facts["rows_train"] == len(train)


def test_more_rows_move_hardly_any_row_across(prepare, prompts):
    before = set(prompts(prepare(TEXTS, eval_fraction=0.1).held_out))
    after = set(prompts(prepare(["new", *TEXTS, "newer"], eval_fraction=0.1).held_out)) - {"new", "newer"}
    assert len(before ^ after) <= 2


def test_the_seed_chooses_the_held_out_rows(prepare, prompts):
    first, again, other = (prompts(prepare(TEXTS, seed=seed).held_out) for seed in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)


def test_one_row_is_held_out_of_a_few(prepare):
    data = prepare(["a", "b", "c"], eval_fraction=0.01)
    assert (data.train.num_rows, data.held_out.num_rows) == (2, 1)


def test_the_number_held_out_is_the_rounded_share():
    digests = [bytes([i]) * 32 for i in range(30)]
    assert [len(hold_out(digests, share, 1)) for share in (0, 0.01, 0.05, 0.09, 0.5)] == [0, 1, 2, 3, 15]
    assert hold_out([], 0.5, 1) == set()


def test_what_is_held_out_beyond_the_evaluated_rows_is_still_not_trained_on(prepare, prompts):
    data = prepare(TEXTS, eval_fraction=0.5, max_eval_rows=7)
    assert (data.train.num_rows, data.held_out.num_rows) == (100, 7)
    assert data.facts["rows_held_out"] == 100
    assert data.facts["rows_evaluated"] == 7
    assert prompts(data.train) == prompts(prepare(TEXTS, eval_fraction=0.5, max_eval_rows=None).train)


def test_an_eval_split_is_held_out_and_its_rows_leave_the_training_rows(prepare, prompts):
    data = prepare({"train": TEXTS, "test": ["x", "question 3", "y"]}, eval_split="test")
    assert prompts(data.held_out) == ["x", "question 3", "y"]
    assert prompts(data.train) == [text for text in TEXTS if text != "question 3"]
    assert (data.facts["rows_read"], data.facts["rows_train"], data.facts["rows_held_out"]) == (200, 199, 3)
    assert data.facts["rows_dropped"] == {"in dataset.eval_split as well": 1}
    assert data.facts["eval_split"] == "test"


def test_a_slice_can_be_the_eval_split(prepare, prompts):
    data = prepare(TEXTS, eval_split="train[-10%:]")
    assert prompts(data.held_out) == TEXTS[-20:]
    assert prompts(data.train) == TEXTS[:-20]


def test_the_surplus_of_an_eval_split_is_still_not_trained_on(prepare, prompts):
    data = prepare(TEXTS, eval_split="train[:50%]", max_eval_rows=5)
    assert data.held_out.num_rows == 5
    assert prompts(data.train) == TEXTS[100:]
    held = [TEXTS.index(text) for text in prompts(data.held_out)]
    assert held == sorted(held)
    assert held != [0, 1, 2, 3, 4]  # a sample of all, not the head of the file


def test_max_rows_counts_the_rows_read_before_the_split(prepare):
    data = prepare(TEXTS, max_rows=40, eval_fraction=0.25)
    assert (data.train.num_rows, data.held_out.num_rows, data.facts["rows_read"]) == (30, 10, 40)


def test_long_rows_are_cut_and_counted_and_rows_without_an_answer_are_dropped_and_counted(prepare):
    data = prepare(["a", "a" * 30, "a" * 100], max_length=40, eval_fraction=0)
    assert [len(ids) for ids in data.train["input_ids"]] == [14, 40]
    assert data.facts["rows_cut"] == 1
    assert data.facts["rows_dropped"] == {"no learned token within trainer.max_length": 1}
    assert (data.facts["rows_read"], data.facts["rows_train"]) == (3, 2)


def test_nothing_left_to_learn_is_an_error(prepare):
    with pytest.raises(
        DataError, match=r"leaves no row to train on: no answer of 2 begins within trainer\.max_length=5"
    ):
        prepare(["a", "b"], max_length=5)
    with pytest.raises(
        DataError, match=r"dataset\.eval_fraction=0\.05 holds out all 1 distinct rows\. Add rows, or"
    ):
        prepare(["a", "a", "a"])
    with pytest.raises(
        DataError, match=r"all are in dataset\.eval_split=train as well\. Choose another eval_split\."
    ):
        prepare(["a", "b"], eval_split="train")


def test_a_bad_row_stops_the_preparation_by_its_name(tokenizer, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    dataset = DatasetConfig(path=str(tmp_path / "mine.jsonl"))
    with pytest.raises(DataError, match=r"mine\.jsonl:2: text is null, not text\."):
        prepare_data(dataset, tokenizer=tokenizer, max_length=100, seed=1)


def test_the_facts_are_counted_from_what_is_trained(prepare):
    data = prepare(TEXTS, eval_fraction=0.5)
    assert json.loads(json.dumps(data.facts)) == data.facts
    assert data.facts["tokens"] == sum(len(ids) for ids in data.train["input_ids"])
    trained = sum(label != -100 for labels in data.train["labels"] for label in labels)
    assert data.facts["trained_tokens"] == trained
    assert data.facts["trained_share"] == pytest.approx(trained / data.facts["tokens"])
    assert 0 < data.facts["trained_share"] < 1
    assert data.facts["source"] == "local"
    assert data.facts["revision"] is None


def test_the_hashes_tell_data_and_tokenizer_apart(prepare, tmp_path):
    first, same, more = (prepare(texts).facts for texts in (TEXTS, TEXTS, [*TEXTS, "more"]))
    assert first == same
    assert first["data_sha256"] != more["data_sha256"]
    assert first["tokenizer_sha256"] == more["tokenizer_sha256"]
    assert first["template_sha256"] == more["template_sha256"]
    other = build_tokenizer(merges=[("q", "u")])
    dataset = DatasetConfig(path=str(tmp_path))
    changed = prepare_data(dataset, tokenizer=other, max_length=1000, seed=1).facts
    assert changed["tokenizer_sha256"] != first["tokenizer_sha256"]
    assert changed["data_sha256"] == more["data_sha256"]


def test_the_loss_target_reaches_the_labels(prepare):
    some, all_tokens = (
        prepare(TEXTS, loss_on=target).facts for target in (LossTarget.assistant, LossTarget.all)
    )
    assert (
        some["trained_tokens"]
        < all_tokens["trained_tokens"]
        == all_tokens["tokens"] - all_tokens["rows_train"]
    )


def test_the_chatterbot_corpus_is_prepared_whole(tokenizer):
    dataset = DatasetConfig(source=DataSource.package, path="chatterbot_corpus")
    data = prepare_data(dataset, tokenizer=tokenizer, max_length=2000, seed=42)
    assert data.facts["rows_read"] > 2000
    assert data.facts["rows_cut"] == 0
    assert data.facts["rows_dropped"] == {}
    assert data.facts["rows_train"] + data.facts["rows_held_out"] == data.facts["rows_read"]
    ends = {tuple(labels[-2:]) for labels in data.train["labels"]}
    assert ends == {(107, 108)}
    assert all(ids[0] == 2 and ids.count(2) == 1 for ids in data.train["input_ids"])


def test_preparing_draws_no_bars(prepare, capfd):
    prepare(TEXTS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
