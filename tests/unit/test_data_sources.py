import json

import pytest

from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.rows import DataSource
from gemma_ft.data.rows import parse_split
from gemma_ft.data.sources import load_rows, open_source
from gemma_ft.errors import DataError, HubError

ROWS = [{"text": letter} for letter in "abcdefghij"]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def local(path, split="train", **keys):
    dataset = DatasetConfig(source=DataSource.local, path=str(path), split=split, **keys)
    return list(load_rows(dataset, split))


def texts(rows):
    return "".join(row.values["text"] for row in rows)


@pytest.fixture
def ten(tmp_path):
    """Give a file of ten rows in each format."""
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "x.jsonl").write_text(JSONL)
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    (tmp_path / "x.csv").write_text("text\n" + "".join(row["text"] + "\n" for row in ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    return tmp_path


@pytest.mark.parametrize(("suffix", "first"), [("jsonl", 1), ("json", 1), ("csv", 2), ("parquet", 1)])
def test_each_format_gives_the_same_rows_and_names_their_places(ten, suffix, first):
    file = ten / f"x.{suffix}"
    rows = local(file)
    assert [row.values for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{file}:{first + i}" for i in range(10)]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:20%]", "ab"),
        ("train[2:4]", "cd"),
        ("train[-10%:]", "j"),
        ("train[-3:]", "hij"),
        ("train[:-8]", "ab"),
        ("train[95%:]", ""),
        ("train[:25%]", "ab"),
        ("train[8:100]", "ij"),
        ("train[:1]+train[9:]", "aj"),
    ],
)
def test_slices_mean_what_they_mean_on_the_hub(ten, suffix, split, expected):
    import datasets

    if expected:
        assert texts(local(ten / f"x.{suffix}", split)) == expected
    else:
        with pytest.raises(DataError, match=rf"x\.{suffix} has no row in dataset\.split=train\[95%:\]"):
            local(ten / f"x.{suffix}", split)
    whole = datasets.Dataset.from_list(ROWS)
    instruction = datasets.ReadInstruction.from_spec(split).to_absolute({"train": 10})
    assert "".join("".join(whole[part.from_ : part.to]["text"]) for part in instruction) == expected


@pytest.mark.parametrize("split", ["train[", "train[5]", "train[a:b]", "train[:5.5%]", "", "train[:5%]x"])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(DataError, match=r'is no split\. Write it like "train", "train\[:5%\]" or'):
        parse_split(split, "dataset.split")


def test_the_slice_does_not_read_the_rest_of_the_file(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{broken')
    assert texts(local(tmp_path / "x.jsonl", "train[:1]")) == "a"


def test_the_files_of_a_folder_follow_each_other_in_the_order_of_their_names(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        content = f'{{"text": "{name[0]}"}}\n' if name.endswith("jsonl") else "text\nc\n"
        (tmp_path / name).write_text(content)
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("{broken")
    assert texts(local(tmp_path)) == "abc"


def test_files_named_after_a_split_are_that_split(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test", "training_notes"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name} "}}\n')
    assert texts(local(tmp_path)) == "train-00000-of-00002 train-00001-of-00002 "
    assert texts(local(tmp_path, "test")) == "test "


def test_a_test_file_is_never_part_of_the_training_split(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"text": "mine"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "test"}\n')
    assert texts(local(tmp_path)) == "mine"


def test_a_missing_split_says_which_ones_exist(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(
        DataError, match=r"dataset\.split=dev is not in .*, which has: train, test\. Choose one\."
    ):
        local(tmp_path, "dev")
    dataset = DatasetConfig(path=str(tmp_path), eval_split="dev")
    with pytest.raises(DataError, match=r"^dataset\.eval_split=dev is not in"):
        list(load_rows(dataset, "dev"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            b'{"a": 1}\n\n{"a": \n',
            r"x\.jsonl:3: no JSON \(Expecting value, column 7\)\. Write one",
        ),
        (
            "x.jsonl",
            b'{"a": 1}\n{"a": "\xff"}\n',
            r"x\.jsonl:2: byte 8 is no UTF-8\. Save the file as UTF-8\.",
        ),
        ("x.jsonl", b'{"a": 1}\n[1]\n', r"x\.jsonl:2: a list where an object with columns must stand\."),
        ("x.jsonl", b"null\n", r"x\.jsonl:1: null where an object"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1: no JSON that can be read"),
        (
            "x.jsonl",
            b'{"a": ' + b"9" * 5000 + b"}",
            r"x\.jsonl:1: no JSON that can be read \(Exceeds the limit",
        ),
        ("x.jsonl", b"\n \n", r"x\.jsonl has no row in dataset\.split=train\. Check the file"),
        ("x.json", b'[{"a": 1}, "b"]', r"x\.json:2: text where an object"),
        ("x.json", b'{"a": 1}\n{"a": 2}\n', r"x\.json: no JSON \(Extra data.*Then name it \.jsonl\."),
        ("x.json", b'{"a": [], "b": []}', r"x\.json: neither a list of objects nor an object with one list"),
        ("x.json", b"[]", r"x\.json has no row in"),
        ("x.json", b'[{"a": "\xff"}]', r"x\.json:1: byte 9 is no UTF-8"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x\.csv:3: 3 fields under a header of 2\. Quote commas\."),
        ("x.csv", b'a\n"1\n2"\n"3', r"x\.csv:4: no CSV \(unexpected end of data\)\. Check the quotes\."),
        ("x.csv", b"a\n\xff\n", r"x\.csv:2: byte 1 is no UTF-8"),
        ("x.csv", b"", r"x\.csv has no row in"),
        (
            "x.parquet",
            b"PAR1 not really PAR1",
            r"x\.parquet:1: no Parquet that can be read \(.*\)\. Write it again\.",
        ),
        ("x.txt", b"a", r"x\.txt has an unknown extension\. Use one of \.jsonl, \.json, \.csv, \.parquet\."),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        local(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match=r"mine\.jsonl is no file or folder here\. Check the path\."):
        local(tmp_path / "mine.jsonl")
    with pytest.raises(DataError, match=r"Check the path; for a hub id add dataset\.source=hub\."):
        local("Abirate/english_quotes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"empty holds no data file\. Put \.jsonl, \.json, \.csv, \.parquet files"
    ):
        local(tmp_path / "empty")


def test_quoted_line_breaks_of_a_csv_do_not_shift_its_line_numbers(tmp_path):
    (tmp_path / "x.csv").write_text('text\n"a\nb"\nc\n')
    rows = local(tmp_path / "x.csv")
    assert [(row.where[-1], row.values["text"]) for row in rows] == [("2", "a\nb"), ("4", "c")]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "x.csv").write_text("text\na\n", encoding="utf-8-sig")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8-sig")
    assert local(tmp_path / "x.csv")[0].values == local(tmp_path / "x.jsonl")[0].values == {"text": "a"}


def test_an_object_with_one_list_is_the_list(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"version": 1, "rows": ROWS}))
    assert texts(local(tmp_path / "x.json")) == "abcdefghij"


def test_a_hub_id_that_is_a_local_folder_is_read_locally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "train.jsonl").write_text(JSONL)
    dataset = DatasetConfig(source=DataSource.hub, path="own/data")
    assert texts(load_rows(dataset, "train")) == "abcdefghij"


def test_the_chatterbot_corpus_is_read_from_its_package():
    source = open_source(DatasetConfig(source=DataSource.package, path="chatterbot_corpus"))
    rows = list(source.rows("train", 0, None))
    assert 2000 < len(rows) < 2500
    assert source.count("train") == len(rows)
    assert rows[0].where == "chatterbot_corpus/ai.yml:1"
    assert rows[0].values["messages"][0] == {"role": "user", "content": "What is AI?"}
    for row in rows:
        roles = [message["role"] for message in row.values["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_several_answers_to_one_remark_are_rows_of_their_own():
    source = open_source(DatasetConfig(source=DataSource.package, path="chatterbot-corpus"))
    answers = [
        row.values["messages"] for row in source.rows("train", 0, None) if "computers.yml:2" in row.where
    ]
    assert len(answers) == 3
    assert {messages[0]["content"] for messages in answers} == {"What is a super computer?"}
    assert answers[-1][1]["content"] == "You know, the big iron!"


def test_a_last_remark_without_an_answer_is_left_out():
    source = open_source(DatasetConfig(source=DataSource.package, path="chatterbot_corpus"))
    first = next(row for row in source.rows("train", 0, None) if "/conversations.yml:1" in row.where)
    assert [message["content"] for message in first.values["messages"]] == [
        "Good morning, how are you?",
        "I am doing well, how about you?",
        "I'm also good.",
        "That's good to hear.",
    ]


def test_an_unknown_or_missing_package_is_refused(monkeypatch):
    with pytest.raises(
        DataError, match=r"dataset\.path=numpy is no package whose rows are known\. Use chatterbot"
    ):
        open_source(DatasetConfig(source=DataSource.package, path="numpy"))
    monkeypatch.setattr("gemma_ft.data.packages.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"is not installed\. Run pip install chatterbot-corpus\."):
        open_source(DatasetConfig(source=DataSource.package, path="chatterbot_corpus"))


def test_a_hub_error_and_a_data_error_end_in_the_code_of_a_wrong_configuration():
    assert HubError.exit_code == DataError.exit_code == 2
