"""Rows and files that are wrong in every way we could think of, each with the one line it must end in."""

import gzip
import json
import os
import socket

import pytest

from gemma_ft.config.places import find_place_problems
from gemma_ft.config.rows import ColumnsConfig, RowsConfig
from gemma_ft.data.conversations.examples import Text, build_example
from gemma_ft.data.sources.opening import load_split, open_source
from gemma_ft.data.sources.rows import RowError
from gemma_ft.errors import DataError

GOOD = Text("good")
MEND = "Correct or remove the row."
FILL = "Fill it or remove the row."
ONE_LINE = "Write one JSON object a line."
ONE_LIST = "Is the whole file one list? Then name it .json."
UTF8 = "Save the file as UTF-8."
AGAIN = "Write it again."
DAMAGED = "NUL bytes. The file is damaged, or was not written to its end: write it again."
PART = "a list of texts where text must stand in column text. Join them to one."
SURROGATE = "half a character (a lone surrogate) at character 1 in column text. Write the file again."
NO_ROW = "dataset.path={file} has no row in dataset.split=train. Check the file and the split."
NO_LIST = "{file}: neither a list of objects nor an object with one list. Use .jsonl for single rows."
KNOWN = (
    "messages | conversations | data | prompt, completion | instruction, output, [input] | text | "
    "quote, author."
)
SHAPES = f"Name them with dataset.columns.*, or rename them to one of: {KNOWN}"


def read(path, **columns):
    """Read as on_bad_row=drop does: examples and the lines of the rows that are dropped."""
    examples, lines = [], []
    source = open_source(RowsConfig(path=str(path)))
    for row in load_split(source, "train", name=str(path), key="dataset.split"):
        try:
            if isinstance(row, RowError):
                raise row
            examples.append(build_example(row, ColumnsConfig(**columns)))
        except RowError as error:
            lines.append(str(error))
    return examples, lines


def refusal(path):
    """Return the line that reading ends in."""
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def chat(*turns):
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}).encode()


JSONL_ROWS = {
    b'{"text": ': f"no JSON (Expecting value, column 10). {ONE_LINE}",
    b'{"text": "a': f"no JSON (Unterminated string starting at, column 10). {ONE_LINE}",
    b'{"text": "a"': f"no JSON (Expecting ',' delimiter, column 13). {ONE_LINE}",
    b'{text: "a"}': f"no JSON (Expecting property name enclosed in double quotes, column 2). {ONE_LINE}",
    b"{'text': 'a'}": f"no JSON (Expecting property name enclosed in double quotes, column 2). {ONE_LINE}",
    b'{"text": None}': f"no JSON (Expecting value, column 10). {ONE_LINE}",
    b'{"text" "a"}': f"no JSON (Expecting ':' delimiter, column 9). {ONE_LINE}",
    b'{"text": "a"} {"text": "b"}': f"no JSON (Extra data, column 15). {ONE_LINE}",
    b'{"text": "a"},': f"no JSON (Extra data, column 14). {ONE_LINE}",
    b'{"text": "a\tb"}': f"no JSON (Invalid control character at, column 12). {ONE_LINE}",
    b'{"text": "\\x"}': f"no JSON (Invalid \\escape, column 11). {ONE_LINE}",
    b"Hello": f"no JSON (Expecting value, column 1). {ONE_LINE}",
    b"// a comment": f"no JSON (Expecting value, column 1). {ONE_LINE}",
    b"\xef\xbb\xbf{": f"no JSON (Expecting property name enclosed in double quotes, column 2). {ONE_LINE}",
    b"[": f"no JSON (a line of only [). {ONE_LIST}",
    b'[{"text": "a"}]': f"a list where an object with columns must stand. {ONE_LIST}",
    b'"text"': "text where an object with columns must stand. Write {...}.",
    b"1": "a whole number where an object with columns must stand. Write {...}.",
    b"1.5": "a number where an object with columns must stand. Write {...}.",
    b"true": "true/false where an object with columns must stand. Write {...}.",
    b"null": "null where an object with columns must stand. Write {...}.",
    b"{}": f"no known shape in an object without columns. {SHAPES}",
    b'{"": "a", "b": 1}': f"no known shape in columns , b. {SHAPES}",
    b'{"text": "\xff"}': f"bad UTF-8 at byte 11 of the line. {UTF8}",
    b'{"text": "caf\xe9"}': f"bad UTF-8 at byte 14 of the line. {UTF8}",
    b'{"text": "\xe2\x82"}': f"bad UTF-8 at byte 11 of the line. {UTF8}",
    b'{"text": "\xed\xa0\x80"}': f"bad UTF-8 at byte 11 of the line. {UTF8}",
    b'{"text": "\xc0\xaf"}': f"bad UTF-8 at byte 11 of the line. {UTF8}",
    b'{"text": "a\0b"}': DAMAGED,
    b"\0" * 50: DAMAGED,
    b'{"text": "a", "text": "b"}': "a key that stands twice (text). Remove one of them.",
    b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}': (
        "a key that stands twice (content). Remove one of them."
    ),
    '{"text": "\u200b\u200d"}'.encode(): f"empty text (nothing that can be seen) in column text. {FILL}",
    b'{"text": NaN}': f"NaN where text must stand in column text. {MEND}",
    b'{"text": -Infinity}': f"a number where text must stand in column text. {MEND}",
    b'{"text": ' + b"9" * 5000 + b"}": "a number of too many digits. Write it as text, or remove the row.",
    b"[" * 1_000_000: f"brackets that are nested too deeply. {MEND}",
    b'{"text": ' + b'{"a": ' * 300_000: f"brackets that are nested too deeply. {MEND}",
    b'{"text": ""}': f"empty text in column text. {FILL}",
    b'{"text": " \\t\\n\\u00a0\\u3000"}': f"empty text (only white space) in column text. {FILL}",
    b'{"text": null}': f"null where text must stand in column text. {MEND}",
    b'{"text": 5}': f"a whole number where text must stand in column text. {MEND}",
    b'{"text": 1e999}': f"a number where text must stand in column text. {MEND}",
    b'{"text": false}': f"true/false where text must stand in column text. {MEND}",
    b'{"text": {"a": "b"}}': f"an object where text must stand in column text. {MEND}",
    b'{"text": ["a"]}': PART,
    b'{"text": "\\ud83d"}': SURROGATE,
    b'{"Text": "a"}': f"no known shape in columns Text. Rename Text to text. The shapes want: {KNOWN}",
    b'{"prompt": "a", "chosen": "b", "rejected": "c"}': (
        f"no known shape in columns prompt, chosen, rejected. {SHAPES}"
    ),
    b'{"messages": {}}': f"an object where a list of turns must stand in column messages. {MEND}",
    b'{"messages": "user: hi"}': f"text where a list of turns must stand in column messages. {MEND}",
    b'{"messages": []}': f"an empty list in column messages. {FILL}",
    b'{"messages": [[]]}': "a list where a turn must stand in turn 1. Give it role and content.",
    b'{"conversations": [{"from": "human"}]}': (
        "a turn without role and content in turn 1 (it has from). Give it role and content, or from and "
        "value."
    ),
    b'{"data": ["a", "b", "c"]}': "ends with the user's turn. The last turn must be the assistant's.",
    b'{"data": ["a", 2]}': f"a whole number where text must stand in turn 2. {MEND}",
    chat(("user", "a"), ("user", "b")): "two user turns in a row. Join them or remove one.",
    chat(("assistant", "a")): "begins with an assistant turn. Begin with the user's.",
    chat(("user", "a"), ("assistant", "")): f"empty text in turn 2. {FILL}",
    chat(("USER", "a"), ("assistant", "b")): "unknown role 'USER' in turn 1. Did you mean user?",
    chat(("user", "a"), ("assistant", "b"), ("system", "c")): (
        "a system message after the start. Only the first message may be one."
    ),
}


@pytest.mark.parametrize("line", JSONL_ROWS, ids=lambda line: repr(line[:40]))
def test_a_wrong_line_of_jsonl_is_named_and_the_rows_beside_it_are_read(line, tmp_path):
    file = tmp_path / "x.jsonl"
    good = b'{"text": "good"}'
    file.write_bytes(b"\n".join([good, b"", line, good, good]) + b"\n")
    assert read(file) == ([GOOD] * 3, [f"{file}:3: {JSONL_ROWS[line]}"])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_lines_may_end_as_on_any_system(end, tmp_path):
    good = b'{"text": "good"}'
    lines = [b"\xef\xbb\xbf" + good, b" ", good, b"{", b"\xef\xbb\xbf" + good, b" \t" + good + b" "]
    (tmp_path / "x.jsonl").write_bytes(end.join(lines))
    examples, faults = read(tmp_path / "x.jsonl")
    assert len(examples) == 4
    assert [fault.partition(": ")[0] for fault in faults] == [f"{tmp_path}/x.jsonl:4"]
    (tmp_path / "x.csv").write_bytes(end.join([b"\xef\xbb\xbftext,n", b"good,1", b"", b"bad", b"good,2"]))
    fault = "a wrong number of fields (1 under a header of 2). Quote texts that hold commas."
    assert read(tmp_path / "x.csv") == ([GOOD] * 2, [f"{tmp_path}/x.csv:4: {fault}"])


@pytest.mark.parametrize("rest", [b'{"text": "go', b'{"text": "good"', b'{"te', b"{", b'{"text": "good", '])
def test_a_last_line_that_was_not_written_to_its_end_is_said_to_be_cut_off(rest, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"text": "good"}\n' + rest)
    fault = "a last line that is cut off. Write the file again to its end."
    assert read(file) == ([GOOD], [f"{file}:2: {fault}"])


CSV_ROWS = {
    b"a": "a wrong number of fields (1 under a header of 2). Quote texts that hold commas.",
    b"a,b,c": "a wrong number of fields (3 under a header of 2). Quote texts that hold commas.",
    b"   ": "a wrong number of fields (1 under a header of 2). Quote texts that hold commas.",
    b"\xff,a": f"bad UTF-8 at byte 1 of the line. {UTF8}",
    b"a,\xe9": f"bad UTF-8 at byte 3 of the line. {UTF8}",
    b"a\0,b": DAMAGED,
    b",b": f"empty text in column prompt. {FILL}",
    b'a,"  "': f"empty text (only white space) in column completion. {FILL}",
}


@pytest.mark.parametrize("line", CSV_ROWS, ids=repr)
def test_a_wrong_row_of_csv_is_named_and_the_rows_beside_it_are_read(line, tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b'prompt,completion\na,"b\nc"\n' + line + b"\nd,e\n")
    examples, faults = read(file)
    assert [example.messages[1][1] for example in examples] == ["b\nc", "e"]
    assert faults == [f"{file}:4: {CSV_ROWS[line]}"]


def test_a_bad_byte_inside_a_quoted_text_of_several_lines_is_named_by_its_line(tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b'text\n"a\n\xff\nb"\ngood\n')
    assert read(file) == ([GOOD], [f"{file}:3: bad UTF-8 at byte 1 of the line. {UTF8}"])


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (
            "[{'role': 'user', 'content': 'a'}]",
            "column messages holds no JSON (Expecting property name enclosed in double quotes, column 3). It "
            "is Python; write it with json.dumps.",
        ),
        (
            '[{"role": "user"',
            "column messages holds no JSON (Expecting ',' delimiter, column 17). Write a list of turns "
            "as JSON.",
        ),
        ("hello", f"text where a list of turns must stand in column messages. {MEND}"),
        ("", f"text where a list of turns must stand in column messages. {MEND}"),
    ],
)
def test_turns_in_the_cell_of_a_csv_are_json(cell, fault, tmp_path):
    import csv

    file = tmp_path / "x.csv"
    good = json.loads(chat(("user", "a"), ("assistant", "b")))["messages"]
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["messages", "n"], [cell, 1], [json.dumps(good), 2]])
    examples, faults = read(file)
    assert examples[0].messages == (("user", "a"), ("assistant", "b"))
    assert faults == [f"{file}:2: {fault}"]


JSON_ITEMS = {
    b'"a"': "text where an object with columns must stand. Write {...}.",
    b"null": "null where an object with columns must stand. Write {...}.",
    b"[]": f"a list where an object with columns must stand. {ONE_LIST}",
    b"7": "a whole number where an object with columns must stand. Write {...}.",
    b"NaN": "NaN where an object with columns must stand. Write {...}.",
    b'{"text": "a", "text": "b"}': "a key that stands twice (text). Remove one of them.",
    b'{"text": ' + b"9" * 5000 + b"}": "a number of too many digits. Write it as text, or remove the row.",
    b"{}": f"no known shape in an object without columns. {SHAPES}",
    b'{"text": "\\udc00"}': SURROGATE,
}


@pytest.mark.parametrize("item", JSON_ITEMS, ids=lambda item: repr(item[:40]))
@pytest.mark.parametrize("around", [b"[%s]", b'\xef\xbb\xbf{"version": 1, "rows": [%s]}'])
def test_a_wrong_item_of_json_is_named_and_the_rows_beside_it_are_read(item, around, tmp_path):
    file = tmp_path / "x.json"
    good = b'{"text": "good"}'
    file.write_bytes(around % b",\n".join([good, item, good]))
    assert read(file) == ([GOOD] * 2, [f"{file}:2: {JSON_ITEMS[item]}"])


def parquet(file, columns):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file)


def parquet_columns():
    """Give columns of which the second row of three cannot be read, each with its line."""
    import pyarrow as pa

    bad = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    late = [0, 253402300800 * 10**6, 0]
    return {
        "timestamp": (
            pa.array(late, pa.timestamp("us")),
            "a value that cannot be read in column x (date value out of range). Correct the value, or remove "
            "the row.",
        ),
        "date": (
            pa.array([0, 2**30, 0], pa.date32()),
            "a value that cannot be read in column x (days=1073741824; must have magnitude <= 999999999). "
            "Correct the value, or remove the row.",
        ),
        "utf-8": (
            pa.Array.from_buffers(pa.string(), 3, [None, *bad]),
            "bad UTF-8 in column x ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). "
            "Correct the value, or remove the row.",
        ),
    }


@pytest.mark.parametrize("kind", ["timestamp", "date", "utf-8"])
def test_a_value_of_parquet_that_cannot_be_read_is_named_where_its_column_is_used(kind, tmp_path):
    column, fault = parquet_columns()[kind]
    parquet(tmp_path / "x.parquet", {"prompt": ["a"] * 3, "completion": ["b"] * 3, "x": column})
    examples, faults = read(tmp_path / "x.parquet")
    assert (len(examples), faults) == (3, [])
    for names in ({"text": "x"}, {"prompt": "prompt", "system": "x"}, {"prompt": "x"}):
        assert f"{tmp_path}/x.parquet:2: {fault}" in read(tmp_path / "x.parquet", **names)[1]


def test_a_time_zone_of_no_place_costs_no_row_where_nobody_reads_it(tmp_path):
    import pyarrow as pa

    times = pa.array([0, None], pa.timestamp("us", tz="Mars/Olympus"))
    parquet(tmp_path / "x.parquet", {"text": ["good", "good"], "x": times})
    assert read(tmp_path / "x.parquet") == ([GOOD, GOOD], [])
    (fault, _) = read(tmp_path / "x.parquet", text="x")[1]
    assert fault.startswith(f"{tmp_path}/x.parquet:1: a value that cannot be read in column x (")
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ([None], f"null where text must stand in column text. {MEND}"),
        ([b"bytes"], f"bytes where text must stand in column text. {MEND}"),
        ([float("nan")], f"NaN where text must stand in column text. {MEND}"),
        ([{"a": 1}], f"an object where text must stand in column text. {MEND}"),
    ],
)
def test_a_column_of_parquet_of_another_type_is_named_in_words_of_data(cells, fault, tmp_path):
    parquet(tmp_path / "x.parquet", {"text": cells})
    assert read(tmp_path / "x.parquet") == ([], [f"{tmp_path}/x.parquet:1: {fault}"])


def test_dates_numbers_and_durations_of_parquet_are_named_in_words_of_data(tmp_path):
    import datetime
    import decimal

    for cell, kind in [
        (datetime.date(2024, 1, 1), "a date"),
        (datetime.datetime(2024, 1, 1), "a date"),
        (datetime.time(1), "a time"),
        (datetime.timedelta(1), "a duration"),
        (decimal.Decimal("1.5"), "a number"),
    ]:
        parquet(tmp_path / "x.parquet", {"text": [cell]})
        assert read(tmp_path / "x.parquet")[1][0].endswith(
            f":1: {kind} where text must stand in column text. {MEND}"
        )


FILES = {
    ("x.jsonl", b""): NO_ROW,
    ("x.jsonl", b"\n \r\n\t\n"): NO_ROW,
    ("x.jsonl", b"\xef\xbb\xbf"): NO_ROW,
    ("x.json", b""): NO_ROW,
    (
        "x.json",
        b" \n",
    ): NO_ROW,
    ("x.json", b"[]"): NO_ROW,
    ("x.csv", b""): NO_ROW,
    (
        "x.csv",
        b"\n\n",
    ): NO_ROW,
    (
        "x.csv",
        b"text\n",
    ): NO_ROW,
    ("x.parquet", b""): f"{{file}}: no Parquet that can be read (Parquet file size is 0 bytes). {AGAIN}",
    ("x.json", b'{"text": "a"}\n{"text": "b"}\n'): (
        "{file}:2: no JSON (Extra data, column 1). Is it one object a line? Then name it .jsonl."
    ),
    ("x.json", b'[{"text": "a"},\n {"text": "b"'): (
        "{file}:2: no JSON (Expecting ',' delimiter, column 14). The file is cut off: write it again to "
        "its end."
    ),
    ("x.json", b'[{"text": "a"}\n {"text": "b"}]'): (
        "{file}:2: no JSON (Expecting ',' delimiter, column 2). Correct it."
    ),
    ("x.json", b"text"): "{file}:1: no JSON (Expecting value, column 1). Correct it.",
    ("x.json", b"[" * 1_000_000): "{file}: no JSON that can be read (nested too deeply). Correct it.",
    (
        "x.json",
        b'[{"text": "a"},\n{"text": "\xff"}]',
    ): f"{{file}}:2: bad UTF-8 at byte 11 of the line. {UTF8}",
    ("x.json", b'{"a": [], "b": []}'): NO_LIST,
    (
        "x.json",
        b"{}",
    ): NO_LIST,
    ("x.json", b'{"text": "a"}'): NO_LIST,
    (
        "x.json",
        b"12",
    ): NO_LIST,
    ("x.json", b'{"a": 1, "a": 2}'): "{file}: a key that stands twice (a). Remove one of them.",
    ("x.csv", b'text\n"a\nb"\n"c\n'): (
        "{file}:4: no CSV (unexpected end of data). Check the quotes from this line on."
    ),
    ("x.csv", b'text\na\n"b"c\n'): (
        "{file}:3: no CSV (',' expected after '\"'). Check the quotes from this line on."
    ),
    ("x.csv", b"text,n,text\na,1,b\n"): "{file}:1: two columns are named text. Rename one.",
    (
        "x.csv",
        b",text\n0,a\n",
    ): "{file}:1: column 1 has no name. Name it, or write the file without its index.",
    (
        "x.csv",
        b"text, \na,b\n",
    ): "{file}:1: column 2 has no name. Name it, or write the file without its index.",
    ("x.csv", b"prompt;completion\na;b\n"): (
        "{file}:1: one column, prompt;completion. Separate columns with commas, not ;."
    ),
    ("x.csv", b"\nprompt\tcompletion\na\tb\n"): (
        "{file}:2: one column, prompt\\tcompletion. Separate columns with commas, not tabs."
    ),
    ("x.csv", b"te\xffxt\na\n"): f"{{file}}:1: bad UTF-8 at byte 3 of the line. {UTF8}",
    (
        "x.jsonl",
        gzip.compress(b'{"text": "a"}\n', mtime=0),
    ): "{file}: compressed with gzip. Unpack it: gunzip.",
    ("x.parquet", gzip.compress(b"a", mtime=0)): "{file}: compressed with gzip. Unpack it: gunzip.",
    ("x.jsonl", b"BZh91AY&SY"): "{file}: compressed with bzip2. Unpack it: bunzip2.",
    ("x.json", b"\xfd7zXZ\x00\x00"): "{file}: compressed with xz. Unpack it: unxz.",
    ("x.jsonl", b"\x28\xb5\x2f\xfd\x04"): "{file}: compressed with zstd. Unpack it: unzstd.",
    ("x.csv", b"PK\x03\x04\x14\0"): (
        "{file}: a ZIP archive or an Excel sheet. Unpack it, or save the sheet as CSV."
    ),
    ("x.jsonl", b"PAR1\x15\x04PAR1"): "{file}: a Parquet file. Name it .parquet.",
    ("x.parquet", b"ARROW1\0\0"): "{file}: an Arrow file. Write it as Parquet.",
    ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"): (
        "{file}: a Git LFS pointer, not the data. Run git lfs pull."
    ),
    ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"): (
        "{file}: a Git LFS pointer, not the data. Run git lfs pull."
    ),
    ("x.csv", b"\n<!DOCTYPE html><html>"): "{file}: a web page, not the data. Download the file itself.",
    ("x.json", b"<HTML><body>"): "{file}: a web page, not the data. Download the file itself.",
    ("x.jsonl", '{"text": "a"}\n'.encode("utf-16")): f"{{file}}: UTF-16 text. {UTF8}",
    ("x.json", '[{"text": "a"}]'.encode("utf-16-be")): f"{{file}}: UTF-16 text. {UTF8}",
    ("x.csv", "text\na\n".encode("utf-16-le")): f"{{file}}: UTF-16 text. {UTF8}",
    ("x.jsonl", '{"text": "a"}\n'.encode("utf-32")): f"{{file}}: UTF-32 text. {UTF8}",
    ("x.parquet", b"not really Parquet, but long enough"): (
        "{file}: no Parquet that can be read (Parquet magic bytes not found in footer. Either the file is "
        f"corrupted or this is not a parquet file). {AGAIN}"
    ),
    ("x.txt", b"a"): (
        "dataset.path={file} has an unknown extension. Use one of .jsonl, .json, .csv, .parquet."
    ),
}


@pytest.mark.parametrize(("name", "content"), FILES, ids=lambda value: repr(value[:24]))
def test_a_file_of_which_nothing_more_can_be_read_ends_in_one_line(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    assert refusal(file) == FILES[name, content].format(file=file)


def test_what_stands_before_the_end_of_a_broken_file_is_read(tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b'text\ngood\ngood\n"b"c\n')
    rows = load_split(open_source(RowsConfig(path=str(file))), "train", name="x", key="dataset.split")
    assert [build_example(next(rows)) for _ in range(2)] == [GOOD] * 2
    with pytest.raises(DataError, match=r"x\.csv:4: no CSV"):
        next(rows)


def test_a_parquet_file_that_is_cut_torn_or_without_columns_ends_in_one_line(tmp_path):
    import pyarrow

    file = tmp_path / "x.parquet"
    parquet(file, {"text": [f"{number} " * 50 for number in range(5000)]})
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert refusal(file).startswith(
        f"{file}: no Parquet that can be read (Parquet magic bytes not found in footer."
    )
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    assert " no Parquet that can be read (" in refusal(file)
    assert "\n" not in refusal(file)
    parquet(file, pyarrow.table({"text": [1, 2]}).select([]))
    assert refusal(file) == f"{file}: no columns. {AGAIN}"
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet(file, pyarrow.Table.from_arrays(columns, names=["text", "text"]))
    assert refusal(file) == f"{file}: two columns are named text. Rename one."


def test_a_column_of_parquet_whose_name_is_no_text_ends_in_one_line(tmp_path):
    file = tmp_path / "x.parquet"
    parquet(file, {"text": ["a"], "other": ["b"]})
    file.write_bytes(file.read_bytes().replace(b"other", b"oth\xffr"))
    assert refusal(file).startswith(
        f"{file}: no Parquet that can be read ('utf-8' codec can't decode byte 0xff"
    )


def test_a_pipe_a_socket_and_links_to_nothing_are_refused_without_waiting(tmp_path):
    pipe, loop, gone, talk = (tmp_path / f"{name}.jsonl" for name in ("pipe", "loop", "gone", "talk"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    gone.symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(talk))
        for file in (pipe, talk):
            assert refusal(file) == (
                f"dataset.path={file} is a pipe or a device, not a file. Write the rows into a file first."
            )
    for file in (loop, gone):
        assert refusal(file) == f"dataset.path={file} is a link that leads nowhere. Check where it points."
    for file in (pipe, loop, gone):
        folder = tmp_path / file.stem
        folder.mkdir()
        (folder / "train.jsonl").write_bytes(b'{"text": "good"}\n')
        file.rename(folder / file.name)
        assert refusal(folder) == (
            f"dataset.path={folder} holds {file.name}, which is no file. Take it away or rename it."
        )


def test_a_folder_with_the_name_of_a_file_is_a_folder(tmp_path):
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    assert refusal(folder) == (
        f"dataset.path={folder} holds no data file. Put .jsonl, .json, .csv, .parquet files there."
    )
    (folder / "part-0.jsonl").write_bytes(b'{"text": "good"}\n')
    assert read(folder) == ([GOOD], [])
    (folder / "more.json").mkdir()
    assert (
        refusal(folder)
        == f"dataset.path={folder} holds more.json, which is no file. Take it away or rename it."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"{}")
    file.chmod(0)
    assert (
        refusal(file)
        == f"{file}: cannot be read (Permission denied). Check that it is a file that you may read."
    )


@pytest.mark.parametrize(
    ("suffix", "method"), [("jsonl", "open"), ("json", "read_bytes"), ("csv", "open"), ("parquet", "open")]
)
def test_an_error_of_the_disk_is_one_line(suffix, method, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    file = tmp_path / f"x.{suffix}"
    file.write_bytes(b"{}")
    source = open_source(RowsConfig(path=str(file)))
    monkeypatch.setattr(f"pathlib.Path.{method}", fail)
    with pytest.raises(DataError) as caught:
        list(source.rows("train", 0, None))
    assert str(caught.value) == (
        f"{file}: cannot be read (Permission denied). Check that it is a file that you may read."
    )


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("~nobody-of-this-name/x.jsonl", "cannot be found (Could not determine home directory"),
        ("a\0b.jsonl", "is no file or folder here. Check the path."),
        (
            "x" * 300 + ".jsonl",
            "cannot be read (File name too long). Check that it is a file that you may read.",
        ),
        ("no/such/file.jsonl", "is no file or folder here. Check the path."),
    ],
)
def test_a_path_that_can_be_none_is_one_line(path, line):
    assert line in refusal(path)
    assert "\n" not in refusal(path)


def test_paths_that_lead_nowhere_are_told_before_anything_is_read(tmp_path):
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert find_place_problems("local", str(loop), "dataset") == [
        f"dataset.path={loop} is a link that leads nowhere. Check where it points."
    ]
    (line,) = find_place_problems("local", "~nobody-of-this-name/x.jsonl", "dataset.mixture.a")
    assert line.startswith("dataset.mixture.a.path=~nobody-of-this-name/x.jsonl cannot be found (")


def test_a_name_with_a_line_break_stays_in_one_line(tmp_path):
    file = tmp_path / "a\nb\udcff.jsonl"
    file.write_bytes(b"{\n")
    examples, (line,) = read(file)
    assert examples == []
    assert line.startswith(f"{tmp_path}/a\\nb\\udcff.jsonl:1: no JSON (")


def test_names_of_columns_may_be_anything_that_a_file_can_hold(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"0,1\na,b\n")
    assert read(tmp_path / "x.csv")[1] == [f"{tmp_path}/x.csv:2: no known shape in columns 0, 1. {SHAPES}"]
    (tmp_path / "x.jsonl").write_bytes(b'{"a\\nb": 1, "\\ud800": 2, "' + b"c" * 100 + b'": 3}\n')
    line = f"{tmp_path}/x.jsonl:1: no known shape in columns a\\nb, \\ud800, {'c' * 57}.... {SHAPES}"
    assert read(tmp_path / "x.jsonl")[1] == [line]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_text_of_fifty_megabytes_is_read(suffix, tmp_path):
    long = "word " * 10_000_000
    rows = [{"text": long}, {"text": "good"}]
    content = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": f'text\n"{long}"\ngood\n',
    }
    (tmp_path / f"x.{suffix}").write_text(content[suffix])
    examples, faults = read(tmp_path / f"x.{suffix}")
    assert (len(examples), faults) == (2, [])


def test_fifty_megabytes_of_nonsense_are_refused(tmp_path):
    for name, content in {
        "quotes.csv": b'text\n"' + b'a""' * 15_000_000,
        "open.jsonl": b'{"text": "' + b"a" * 50_000_000,
        "line.jsonl": b"a" * 50_000_000,
        "returns.jsonl": b'{"text": "good"}\r' * 100_000 + b"{",
        "empty.jsonl": b"\n" * 1_000_000,
        "brackets.json": b"[" * 50_000_000,
    }.items():
        (tmp_path / name).write_bytes(content)
        try:
            _, (line,) = read(tmp_path / name)
        except DataError as error:
            line = str(error)
        assert len(line) < 400
