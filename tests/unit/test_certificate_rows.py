"""The rows that a certificate is measured on: the same choice each time, something learned in each."""

import json

import pytest

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate import rows as certificate_rows
from gemma_ft.exporting.certificate.rows import (
    CertificateRow,
    CertificateRows,
    choose_rows,
    cut_row,
    read_rows,
    write_rows,
)


def row(length, learned_from, learned_to=None):
    ids = list(range(1000, 1000 + length))
    end = length if learned_to is None else learned_to
    return {"input_ids": ids, "labels": [i if learned_from <= n < end else -100 for n, i in enumerate(ids)]}


def made(**row):
    return CertificateRow(tuple(row["input_ids"]), tuple(row["labels"]))


def test_first_rows_that_fit_whole_are_chosen_before_longer_ones():
    data = [row(30, 5), row(700, 5), row(20, 3), row(512, 9), row(40, 5)]
    chosen = choose_rows(data, count=4)
    assert chosen == [made(**data[0]), made(**data[2]), made(**data[3]), made(**data[4])]
    assert choose_rows(iter(data), count=4) == chosen


def test_longer_rows_are_cut_where_there_are_too_few_short_ones():
    data = [row(700, 5), row(20, 3)]
    short, long = choose_rows(data)
    assert short == made(**data[1])
    assert (long.input_ids, long.labels) == (made(**data[0]).input_ids[:512], made(**data[0]).labels[:512])


def test_rows_without_anything_learned_are_passed_over():
    nothing, first_only = row(10, 10), row(10, 0, 1)
    assert choose_rows([nothing, first_only]) == []


def test_no_more_rows_are_read_than_needed():
    def endless():
        while True:
            yield row(700, 5)

    assert len(choose_rows(endless())) == certificate_rows.MOST_ROWS


@pytest.mark.parametrize("start", [0, 5, 40, 99, 100, 101, 250, 299])
def test_a_cut_row_keeps_its_first_token_and_something_learned(start):
    whole = made(**row(300, start))
    cut = cut_row(whole, 100)
    assert len(cut.input_ids) == len(cut.labels) == 100
    assert cut.input_ids[0] == whole.input_ids[0]
    assert cut.learned
    assert whole.input_ids[max(1, start)] in cut.input_ids
    if start < 80:
        assert cut.input_ids == whole.input_ids[:100]


def test_rows_are_read_as_written(tmp_path):
    chosen = choose_rows([row(30, 5), row(20, 3)])
    write_rows(tmp_path / "rows.json", chosen, source="training")
    assert read_rows(tmp_path / "rows.json") == CertificateRows("training", tuple(chosen))


def test_rows_that_read_back_differently_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(certificate_rows, "read_rows", lambda path: CertificateRows("held_out", ()))
    with pytest.raises(ExportError, match=r"rows\.json was written, but reads back differently\."):
        write_rows(tmp_path / "rows.json", choose_rows([row(30, 5)]), source="held_out")


@pytest.mark.parametrize(
    "content",
    [
        {"rows": []},
        {"source": "elsewhere", "rows": []},
        {"source": "held_out", "rows": [{"input_ids": [1, 2]}]},
        {"source": "held_out", "rows": [{"input_ids": [1, 2], "labels": [-100, -100]}]},
        {"source": "held_out", "rows": [{"input_ids": [1, 2], "labels": [-100]}]},
        {"source": "held_out", "rows": 3},
    ],
)
def test_files_that_hold_no_rows_are_refused(content, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(content))
    with pytest.raises(ExportError, match=r"rows\.json holds no rows for a certificate \("):
        read_rows(tmp_path / "rows.json")
