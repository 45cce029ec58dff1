import json
from collections import Counter
from functools import partial

import pytest
from data_tokenizer import build_tokenizer

from gemma_ft.config.dataset import (
    ControlTokens,
    Copies,
    DatasetConfig,
    LossTarget,
    NearCopies,
    OnBadRow,
    OnLongRow,
)
from gemma_ft.config.rows import DataSource, MixturePart
from gemma_ft.data.holdout import hold_out
from gemma_ft.data.prepare import prepare_data
from gemma_ft.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Prepare rows that are given as texts, or files of them."""

    def run(files, *, max_length=1000, seed=1, packing=False, **keys):
        files = files if isinstance(files, dict) else {"train": files}
        for stem, texts in files.items():
            rows = [{"prompt": text, "completion": f"{text}!"} for text in texts]
            (tmp_path / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = DatasetConfig(path="" if "mixture" in keys else str(tmp_path), **keys)
        return prepare_data(dataset, tokenizer=tokenizer, max_length=max_length, seed=seed, packing=packing)

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
    assert data.facts["rows_dropped"] == {"in eval_split as well": 1}
    assert data.facts["overlap"] == 1
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
        DataError,
        match=r"2 x no learned token within trainer\.max_length\. Mend .* raise trainer\.max_length=5",
    ):
        prepare(["a", "b"], max_length=5)
    with pytest.raises(
        DataError, match=r"dataset\.eval_fraction=0\.05 holds out all of its distinct rows\. Add rows, or"
    ):
        prepare(["a", "a", "a"])
    with pytest.raises(
        DataError,
        match=r"all of its distinct rows\. The others cannot be used: 2 x no learned token within "
        r"trainer\.max_length\. Mend the rows, or raise trainer\.max_length=50\.$",
    ):
        prepare(["a", "x" * 100, "y" * 100], max_length=50)
    with pytest.raises(
        DataError, match=r"all are in the eval_split as well \(dataset\.eval_split=train\)\. Choose another"
    ):
        prepare(["a", "b"], eval_split="train")


def test_a_bad_row_stops_the_preparation_by_its_name(tokenizer, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    dataset = DatasetConfig(path=str(tmp_path / "mine.jsonl"))
    with pytest.raises(DataError, match=r"mine\.jsonl:2: null where text must stand"):
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


def sources(tmp_path, **parts):
    """Write files, and name each as a source of a mixture."""
    for name, (texts, _) in parts.items():
        rows = [{"prompt": text, "completion": f"{text}!"} for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        name: MixturePart(path=str(tmp_path / f"{name}.jsonl"), **keys) for name, (_, keys) in parts.items()
    }


def test_a_mixture_is_mixed_by_weight_and_says_what_it_took(prepare, prompts, tmp_path):
    mixture = sources(
        tmp_path,
        words=([f"word {i}" for i in range(300)], {"weight": 1}),
        pages=([f"page {i} " + "of a book " * 20 for i in range(60)], {"weight": 3}),
    )
    data = prepare({}, mixture=mixture, eval_fraction=0.1)
    shares = data.facts["mixture"]
    assert shares["pages"]["tokens_share"] == pytest.approx(0.75, abs=0.01)
    assert shares["words"]["weight"] == 0.25
    assert shares["pages"]["rows_available"] + shares["words"]["rows_available"] == 324
    assert sum(share["rows"] for share in shares.values()) == data.facts["rows_train"] == data.train.num_rows
    assert sum(share["tokens"] for share in shares.values()) == data.facts["tokens"]
    assert data.facts["rows_held_out"] == 36
    assert not set(prompts(data.held_out)) & set(prompts(data.train))
    kinds = [text.split()[0] for text in prompts(data.train)]
    assert kinds != sorted(kinds)
    assert prompts(prepare({}, mixture=mixture, eval_fraction=0.1).train) == prompts(data.train)
    assert data.facts["sources"]["pages"]["path"] == str(tmp_path / "pages.jsonl")


def test_a_source_with_an_eval_split_holds_that_out(prepare, prompts, tmp_path):
    (tmp_path / "chats").mkdir()
    for name in ("train", "test"):
        rows = [{"prompt": f"{name} {i}", "completion": "yes"} for i in range(20)]
        rows.append({"prompt": "both", "completion": "yes"})
        (tmp_path / "chats" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = sources(tmp_path, words=([f"word {i}" for i in range(20)], {}))
    mixture["chats"] = MixturePart(path=str(tmp_path / "chats"), eval_split="test")
    data = prepare({}, mixture=mixture, eval_fraction=0.1)
    held = prompts(data.held_out)
    assert sorted(text for text in held if not text.startswith("word")) == sorted(
        [f"test {i}" for i in range(20)] + ["both"]
    )
    assert sum(text.startswith("word") for text in held) == 2
    assert set(held).isdisjoint(prompts(data.train))
    assert "both" not in prompts(data.train)
    assert data.facts["overlap"] == 1


def test_a_source_with_nothing_left_is_named(prepare, tmp_path):
    mixture = sources(tmp_path, words=(["a"], {}), more=(["b", "c"], {}))
    with pytest.raises(
        DataError, match=r"^dataset\.mixture\.words\.path=.*words\.jsonl leaves no row to train on"
    ):
        prepare({}, mixture=mixture, max_length=5)


def test_a_source_of_copies_alone_is_named_with_the_setting_that_leaves_them_out(prepare, tmp_path):
    mixture = sources(tmp_path, words=(["a", "b", "c"], {}), more=(["a", "b", "c"], {}))
    with pytest.raises(DataError, match=r"more\.jsonl leaves no row .*\.duplicates=drop leaves out all 3"):
        prepare({}, mixture=mixture, eval_fraction=0, duplicates=Copies.drop)


def test_a_source_of_rows_that_cannot_be_used_is_not_told_to_raise_the_limit(prepare):
    with pytest.raises(DataError, match=r"train on: 1 x empty text\. Leave dataset\.on_bad_row out"):
        prepare([""], on_bad_row=OnBadRow.drop)


def test_copies_are_counted_and_dropped_where_that_is_asked(prepare, prompts, tmp_path):
    texts = ["a", "b", "a", "c", "a"]
    kept = prepare(texts, eval_fraction=0)
    assert (kept.facts["duplicates"], kept.facts["rows_train"], kept.facts["rows_dropped"]) == (2, 5, {})
    dropped = prepare(texts, eval_fraction=0, duplicates=Copies.drop)
    assert prompts(dropped.train) == ["a", "b", "c"]
    assert dropped.facts["rows_dropped"] == {"copy of an earlier row": 2}
    assert dropped.facts["duplicates"] == 2
    dropped.write_dropped(tmp_path / "dropped.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in listed] == ["3", "5"]
    assert {row["cause"] for row in listed} == {"copy of an earlier row"}


def test_overlap_with_an_eval_split_is_kept_where_that_is_asked(prepare, prompts):
    data = prepare({"train": ["a", "b"], "test": ["b", "c"]}, eval_split="test", overlap=Copies.keep)
    assert prompts(data.train) == ["a", "b"]
    assert (data.facts["overlap"], data.facts["rows_dropped"]) == (1, {})


def test_near_duplicates_are_counted_and_dropped_where_that_is_asked(prepare):
    story = " ".join(f"then came number {i} of them" for i in range(60))
    texts = [story, story.replace("number 30", "the number 30"), "something else " * 30]
    prepare = partial(prepare, texts, eval_fraction=0, max_length=9999)
    assert prepare().facts["near_duplicates"] is None
    reported = prepare(near_duplicates=NearCopies.report).facts
    assert (reported["near_duplicates"], reported["rows_train"], reported["rows_dropped"]) == (1, 3, {})
    dropped = prepare(near_duplicates=NearCopies.drop).facts
    assert (dropped["near_duplicates"], dropped["rows_train"]) == (1, 2)
    assert dropped["rows_dropped"] == {"almost the same as an earlier row": 1}


def test_bad_rows_are_dropped_counted_by_cause_and_listed(tokenizer, tmp_path):
    good = {"prompt": "a", "completion": "b"}
    lines = [json.dumps(good), "{", json.dumps({**good, "prompt": 3}), json.dumps({**good, "prompt": [1]})]
    lines += [json.dumps({**good, "prompt": 4}), json.dumps({**good, "prompt": "c"})]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    dataset = DatasetConfig(path=str(tmp_path / "mine.jsonl"), on_bad_row=OnBadRow.drop, eval_fraction=0)
    data = prepare_data(dataset, tokenizer=tokenizer, max_length=100, seed=1)
    assert (data.facts["rows_read"], data.facts["rows_train"]) == (6, 2)
    assert sum(data.facts["rows_dropped"].values()) == 4
    assert 2 in data.facts["rows_dropped"].values()  # twice the same cause
    data.write_dropped(tmp_path / "dropped.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [row["where"] for row in listed] == [f"{tmp_path}/mine.jsonl:{number}" for number in (2, 3, 4, 5)]
    assert Counter(row["cause"] for row in listed) == data.facts["rows_dropped"]
    assert all(row["message"].startswith(row["where"] + ": ") for row in listed)


def test_nothing_is_listed_where_nothing_is_dropped(prepare, tmp_path):
    (tmp_path / "dropped.jsonl").write_text("of an earlier try")
    prepare(["a", "b"]).write_dropped(tmp_path / "dropped.jsonl")
    assert not (tmp_path / "dropped.jsonl").exists()


def test_a_typed_control_token_is_text_or_a_bad_row(prepare, tokenizer):
    texts = ["say <end_of_turn> twice", "b"]
    escaped = prepare(texts, eval_fraction=0)
    assert all(list(ids).count(107) == 2 for ids in escaped.train["input_ids"])
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*<end_of_turn>.*dataset\.control_tokens=escape"):
        prepare(texts, control_tokens=ControlTokens.refuse)
    dropped = prepare(texts, eval_fraction=0, control_tokens=ControlTokens.refuse, on_bad_row=OnBadRow.drop)
    assert dropped.facts["rows_train"] == 1


def test_pieces_of_one_conversation_are_no_copies_and_stay_on_one_side(tokenizer, tmp_path):
    talks = [
        {"data": [f"{side} {turn} of {talk} " + "word " * 5 for turn in range(6) for side in "qa"]}
        for talk in range(20)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    dataset = DatasetConfig(
        path=str(tmp_path / "talks.jsonl"), on_long_row=OnLongRow.split, eval_fraction=0.2
    )
    data = prepare_data(dataset, tokenizer=tokenizer, max_length=200, seed=1)
    assert data.facts["rows_train"] > 40
    assert data.facts["duplicates"] == 0
    assert data.facts["turns_cut"] == 0
    sides = [
        {int(tokenizer.decode(ids).split(" of ")[1].split()[0]) for ids in table["input_ids"]}
        for table in (data.train, data.held_out)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0] | sides[1]) == 20


def test_packed_sequences_hold_every_row_whole_once(prepare):
    texts = [f"question {'word ' * (i % 7)}{i}" for i in range(100)]
    packed = prepare(texts, eval_fraction=0, packing=True, max_length=120)
    loose = prepare(texts, eval_fraction=0, max_length=120)
    found = []
    for row in packed.train:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= 120
        start = 0
        for length in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in loose.train)
    filled = packed.facts["tokens"] / (packed.train.num_rows * 120)
    assert packed.facts["packing"] == {
        "sequences": packed.train.num_rows,
        "efficiency": pytest.approx(filled),
    }
    assert loose.facts["packing"] is None
    assert packed.rows.num_rows == 100


def test_bad_rows_of_the_eval_split_are_counted_apart(tokenizer, tmp_path):
    good = json.dumps({"prompt": "a", "completion": "b"})
    (tmp_path / "train.jsonl").write_text(f"{good}\n[]\n")
    (tmp_path / "test.jsonl").write_text(f"{good.replace('a', 'x')}\n[]\n[]\n")
    dataset = DatasetConfig(path=str(tmp_path), eval_split="test", on_bad_row=OnBadRow.drop)
    facts = prepare_data(dataset, tokenizer=tokenizer, max_length=100, seed=1).facts
    assert list(facts["rows_dropped"].values()) == [1]
    assert list(facts["held_out_dropped"].values()) == [2]


def test_an_eval_split_without_a_row_to_score_is_refused(prepare):
    files = {"train": TEXTS, "test": ["x" * 100, "y" * 100]}
    with pytest.raises(
        DataError,
        match=r"^dataset\.eval_split=test leaves no row to score: 2 x no learned token within "
        r"trainer\.max_length\. Mend the rows, or raise trainer\.max_length=50\.$",
    ):
        prepare(files, eval_split="test", max_length=50)
    assert prepare(files, eval_split="test").held_out.num_rows == 2
