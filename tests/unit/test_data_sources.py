import hashlib
import json
import sys

import pytest

from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.places import find_place_problems
from gemma_ft.config.rows import DataSource
from gemma_ft.data.sources.opening import identify_split, load_split, open_source
from gemma_ft.data.sources.rows import parse_split
from gemma_ft.errors import DataError, HubError

ROWS = [{"text": letter} for letter in "abcdefghij"]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def local(path, split="train", **keys):
    return read(DatasetConfig(source=DataSource.local, path=str(path), split=split, **keys), split)


def read(dataset, split="train"):
    return list(load_split(open_source(dataset), split, name=dataset.path, key="dataset.split"))


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


def folder_of(folder, *names):
    for name in names:
        (folder / name).write_text(f'{{"text": "{name.partition(".")[0]} "}}\n')
    return folder


def test_files_named_after_a_split_are_that_split(tmp_path):
    names = ("train-00000-of-00002", "train-00001-of-00002", "test", "training_notes")
    folder_of(tmp_path, *(f"{name}.jsonl" for name in names))
    assert texts(local(tmp_path)) == "train-00000-of-00002 train-00001-of-00002 "
    assert texts(local(tmp_path, "test")) == "test "
    assert texts(local(tmp_path, "training_notes")) == "training_notes "


def test_a_test_file_is_never_part_of_the_training_split(tmp_path):
    for names in (
        ("mine.jsonl", "test.jsonl"),
        ("mine.jsonl", "mine_test.jsonl", "mine-val-2.jsonl"),
        ("mine.jsonl", "Test.jsonl", "VALIDATION.jsonl", "testing.jsonl", "eval_1.jsonl"),
    ):
        folder = tmp_path / str(len(names))
        folder.mkdir()
        assert texts(local(folder_of(folder, *names))) == "mine "


def test_a_folder_of_several_files_says_once_which_of_them_are_which_split(tmp_path, caplog):
    caplog.set_level("INFO", logger="gemma_ft")
    local(folder_of(tmp_path, "only.jsonl"))
    assert caplog.messages == []
    folder_of(tmp_path, "train_extra.jsonl", "test.jsonl", "a.jsonl", "b.jsonl", "notes.txt", ".hidden.jsonl")
    (tmp_path / "raw").mkdir()
    local(tmp_path)
    assert caplog.messages == [
        f"dataset.path={tmp_path}: train is train_extra.jsonl; test is test.jsonl; splits of their own names "
        "are a.jsonl, b.jsonl, only.jsonl; not read: notes.txt, raw/."
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_many_files_of_one_split_are_named_in_short(tmp_path, caplog):
    caplog.set_level("INFO", logger="gemma_ft")
    local(folder_of(tmp_path, *(f"part-{number}.jsonl" for number in range(8))))
    first = ", ".join(f"part-{number}.jsonl" for number in range(5))
    assert caplog.messages == [f"dataset.path={tmp_path}: train is {first} and 3 more."]
    assert caplog.records[0].levelname == "INFO"


def test_an_empty_file_among_others_is_warned_of(tmp_path, caplog):
    folder_of(tmp_path, "train-0.jsonl", "train-2.jsonl")
    (tmp_path / "train-1.jsonl").write_text("\n")
    assert texts(local(tmp_path)) == "train-0 train-2 "
    assert caplog.messages == [f"{tmp_path}/train-1.jsonl holds no row. Is it complete?"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train.csv", "train.jsonl"),
            r"holds train\.csv and train\.jsonl, the same name twice\. Take one away, or name one file\.$",
        ),
        (
            ("train_test.jsonl",),
            r"holds train_test\.jsonl, which is named after train and test\. Rename it\.$",
        ),
        (
            ("data-00000-of-00001.arrow", "state.json"),
            r"was written by save_to_disk\. Write it with to_parquet or to_json instead\.$",
        ),
        (
            ("dataset_infos.json", "x.txt"),
            r"holds no data file\. Put \.jsonl, \.json, \.csv, \.parquet files",
        ),
    ],
)
def test_a_folder_whose_files_can_mean_two_things_is_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=rf"^dataset\.path={tmp_path} {message}"):
        local(folder_of(tmp_path, *names))


def test_a_folder_with_its_data_in_a_subfolder_says_which(tmp_path):
    (tmp_path / "data").mkdir()
    folder_of(tmp_path / "data", "train.jsonl")
    with pytest.raises(DataError, match=r"holds no data file\. Its folder data does: name that\.$"):
        local(tmp_path)
    (problem,) = find_place_problems("local", str(tmp_path), "dataset")
    assert problem.endswith("holds no data file. Its folder data does: name that.")


def test_a_single_file_is_the_split_train_and_no_other(tmp_path):
    (tmp_path / "test.jsonl").write_text(JSONL)
    assert texts(local(tmp_path / "test.jsonl")) == "abcdefghij"
    with pytest.raises(
        DataError, match=r"^dataset\.split=test is not in .*, which has: train\. Choose one\.$"
    ):
        local(tmp_path / "test.jsonl", "test")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_equal_bytes_are_one_identity_and_other_bytes_another(ten, suffix):
    file = ten / f"x.{suffix}"

    def identity(split="train"):
        source = open_source(DatasetConfig(path=str(file)))
        return identify_split(source, split, name="x", key="dataset.split")

    before = identity()
    assert before == identity() == json.loads(json.dumps(before))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert before == {"split": "train", "rows": {"train": {"files": {file.name: digest}}}}
    assert identity("train[:5]") != before
    file.write_bytes(file.read_bytes() + b"\n")
    assert identity() != before
    with pytest.raises(DataError, match=r"dataset\.split=dev is not in x, which has: train\."):
        identity("dev")


def test_the_identity_of_a_split_is_of_its_files_alone(tmp_path):
    folder_of(tmp_path, "train-1.jsonl", "train-2.jsonl", "test.jsonl")
    source = open_source(DatasetConfig(path=str(tmp_path)))
    assert list(source.identity("train")["files"]) == ["train-1.jsonl", "train-2.jsonl"]
    assert list(source.identity("test")["files"]) == ["test.jsonl"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_split_counts_its_rows_without_those_that_are_no_rows(ten, suffix):
    file = ten / f"x.{suffix}"
    if suffix != "parquet":
        file.write_bytes(file.read_bytes() + b"\n\n")
    assert open_source(DatasetConfig(path=str(file))).count("train") == 10


def test_a_slice_far_beyond_the_end_is_empty(ten):
    for split in ("train[99999999999999999999:]", "train[5:2]", "train[10:99999999999999999999]"):
        with pytest.raises(DataError, match=r"x\.jsonl has no row in dataset\.split="):
            local(ten / "x.jsonl", split)


def test_a_missing_split_says_which_ones_exist(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(
        DataError, match=r"dataset\.split=dev is not in .*, which has: train, test\. Choose one\."
    ):
        local(tmp_path, "dev")
    source = open_source(DatasetConfig(path=str(tmp_path)))
    with pytest.raises(DataError, match=r"^dataset\.mixture\.a\.eval_split=dev is not in"):
        list(load_split(source, "dev", name="x", key="dataset.mixture.a.eval_split"))


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
    assert texts(read(dataset)) == "abcdefghij"


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


PACKAGED = DataSource.package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package that cannot be imported, with data of its own."""
    (tmp_path / "some_quotes" / "data").mkdir(parents=True)
    (tmp_path / "some_quotes" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "some_quotes" / "data" / "train.jsonl").write_text(JSONL + "{broken\n")
    (tmp_path / "single.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["some_quotes/data/train.jsonl", "some-quotes/data/train.jsonl"])
def test_the_data_file_of_any_package_is_read_without_importing_it(package, path):
    rows = read(DatasetConfig(source=PACKAGED, path=path))
    assert texts(rows[:10]) == "abcdefghij"
    assert [row.where for row in rows[:2]] == [f"{path}:1", f"{path}:2"]
    assert str(rows[10]).startswith(f"{path}:11: no JSON (")
    assert "some_quotes" not in sys.modules


def test_the_data_folder_of_a_package_has_splits(package):
    source = open_source(DatasetConfig(source=PACKAGED, path="some_quotes/data"))
    assert source.splits == ("train",)
    assert next(source.rows("train", 0, None)).where == "some_quotes/data/train.jsonl:1"
    assert list(source.identity("train")["files"]) == ["train.jsonl"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "numpy",
            r"is no package whose rows are known\. Use chatterbot_corpus, or name its file: PACKAGE/FILE",
        ),
        ("no_such_package/x.jsonl", r"is not installed\. Run pip install no-such-package\."),
        ("no such/x.jsonl", r"is not installed\. Run pip install no such\."),
        ("single/x.jsonl", r"is a single module without files\. Name a package\."),
        ("some_quotes/../x.jsonl", r"leads out of the package\. Use dataset=local for files of your own\."),
        ("some_quotes/data/x.jsonl", r"is no file or folder here\. Check the path\."),
        ("some_quotes/__init__.py", r"has an unknown extension\. Use one of"),
    ],
)
def test_a_package_without_such_rows_is_refused(package, path, message):
    with pytest.raises(DataError, match=rf"^dataset\.path={path} {message}"):
        open_source(DatasetConfig(source=PACKAGED, path=path))


def test_a_corpus_that_is_not_installed_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr("gemma_ft.data.sources.packages.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"is not installed\. Run pip install chatterbot-corpus\."):
        open_source(DatasetConfig(source=PACKAGED, path="chatterbot_corpus"))


def test_the_corpus_is_known_by_the_bytes_of_its_files():
    source = open_source(DatasetConfig(source=PACKAGED, path="chatterbot_corpus"))
    files = source.identity("train")["files"]
    assert "ai.yml" in files
    assert all(len(digest) == 64 for digest in files.values())


def test_a_hub_error_and_a_data_error_end_in_the_code_of_a_wrong_configuration():
    assert HubError.exit_code == DataError.exit_code == 2


def test_a_conversation_alone_in_a_json_file_is_one_row(tmp_path):
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tags": []}
    (tmp_path / "one.json").write_text(json.dumps(talk))
    dataset = DatasetConfig(path=str(tmp_path / "one.json"))
    rows = list(load_split(open_source(dataset), "train", name="x", key="dataset.split"))
    assert [row.values for row in rows] == [talk]
