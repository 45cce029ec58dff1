"""What an inspection computes and how it is written: every token, every number, nothing obeyed or hidden."""

import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from data_tokenizer import build_tokenizer
from inspection_data import build_data, build_rows

from gemma_ft.config.dataset import Copies, DatasetConfig
from gemma_ft.config.schema import RunConfig
from gemma_ft.data.packing import pack
from gemma_ft.inspection import measures
from gemma_ft.inspection.batches import count_packed, count_sequences, expected_padding
from gemma_ft.inspection.ink import ASCII, Ink, Signs, columns
from gemma_ft.inspection.lengths import Lengths
from gemma_ft.inspection.markup import Markup, element
from gemma_ft.inspection.measures import MEASURES, measure_rows
from gemma_ft.inspection.notes import find_notes
from gemma_ft.inspection.page import build_page
from gemma_ft.inspection.pieces import Kind, Look, Piece, Vocabulary, read_line, show, split_piece
from gemma_ft.inspection.plots import length_plot
from gemma_ft.inspection.survey import survey_data
from gemma_ft.inspection.terminal import render, token_lines

PLAIN = Ink(colour=False, signs=Signs(), width=None)
COLOUR = Ink(colour=True, signs=Signs(), width=None)
CODES = re.compile(r"\x1b\[[\d;]*m")
ODD = [
    ["What is 3 plus 3?", "It is 6."],
    ["Hi \x1b[31mred\x07", "  def f():\n\treturn  1   \n\n\nok | \u2502 \u2423 \u21b5"],
    ["\u0645\u0631\u062d\u0628\u0627 \u202eevil\u202c", "\u05e9\u05dc\u05d5\u05dd (1)"],
    [
        "\u4f60\u597d \U0001f468\u200d\U0001f469",
        "e\u0301 \u0301x\u00a0<script>alert(1)</script></style>&amp;",
    ],
    ["the " * 30, " the" * 40],
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer)


@pytest.fixture
def survey(tokenizer, vocabulary):
    """Survey talks as if they had been prepared."""

    def look(talks, max_length=10_000, *, rows=100, packing=False, micro_batch_size=1, dataset=None, **facts):
        config = RunConfig(dataset=DatasetConfig(path="chats.jsonl", **(dataset or {})))
        config.trainer.max_length, config.trainer.packing = max_length, packing
        config.trainer.micro_batch_size = micro_batch_size
        return survey_data(build_data(tokenizer, talks, max_length, **facts), config, vocabulary, rows=rows)

    return look


def text(words, learned=False):
    return Piece(7, words, Kind.text, learned)


def shown(words, before=None):
    marks = {Look.space: str.maketrans(" \t", "_>"), Look.newline: str.maketrans("\n", "$")}
    return "".join(part.text.translate(marks.get(part.look, {})) for part in split_piece(text(words), before))


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\x07b\r", "a\\x07b\\x0d"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\u202eevil"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("a\u00a0b\u2028", "a\\xa0b\\u2028"),
        ("\u0301a", "\u25cc\u0301a"),
        ("\u093f", "\u25cc\u093f"),
        ("\u20e3", "\u25cc\u20e3"),
        ("\U0001f3fd!", "\\U0001f3fd!"),
        ("\U0001f44d\U0001f3fd", "\U0001f44d\U0001f3fd"),
        ("\U0001f1e9", "\u25cc\U0001f1e9"),
        ("\U0001f1e9\U0001f1ea", "\U0001f1e9\U0001f1ea"),
        ("e\u0301 \u4f60\u597d \u0645", "e\u0301 \u4f60\u597d \u0645"),
        ("plain text", "plain text"),
        ("", ""),
    ],
)
def test_what_would_be_obeyed_or_hidden_is_written_out(raw, written):
    assert show(raw) == written


@pytest.mark.parametrize(
    ("words", "before", "expected"),
    [
        (" the", text("What"), " the"),
        (" the", None, "_the"),
        (" the", text("a\n"), "_the"),
        (" ", text("plus"), "_"),
        ("    if", text("\n"), "____if"),
        ("a  b", text("x"), "a__b"),
        ("a b", text("x"), "a b"),
        ("x ", text("x"), "x_"),
        ("\t\tx", text("x"), ">>x"),
        ("a \nb", text("x"), "a_$b"),
        ("\n\n", text("x"), "$$"),
    ],
)
def test_white_space_is_marked_where_it_would_not_be_seen(words, before, expected):
    assert shown(words, before) == expected


def test_control_tokens_and_bytes_are_told_from_text(tokenizer, vocabulary):
    typed = tokenizer.backend_tokenizer.encode("\u4f60 <0x41>", add_special_tokens=False).ids
    pieces = vocabulary.pieces([2, 106, *typed, 107, 1], [-100, 106, *typed, 107, -100])

    assert [piece.text for piece in pieces][:5] == ["<bos>", "<start_of_turn>", "<0xE4>", "<0xBD>", "<0xA0>"]
    kinds = [piece.kind for piece in pieces]
    assert kinds[:5] == [Kind.control] * 2 + [Kind.byte] * 3
    assert set(kinds[5:-2]) == {Kind.text}
    assert kinds[-2:] == [Kind.control] * 2
    assert [piece.learned for piece in pieces] == [False, *[True] * (len(pieces) - 2), False]


def test_turn_marks_are_control_tokens_where_the_tokenizer_does_not_register_them(vocabulary):
    words = {"<start_of_turn>": 106, "<end_of_turn>": 107, "a": 3}
    bare = SimpleNamespace(
        all_special_ids=[0, 1, 2],
        get_vocab=lambda: words,
        convert_tokens_to_ids=lambda tokens: [words[token] for token in tokens],
        convert_ids_to_tokens=lambda ids: [{v: k for k, v in words.items()}[i] for i in ids],
    )

    assert [piece.kind for piece in Vocabulary(bare).pieces([106, 3, 107], [-100] * 3)] == [
        Kind.control,
        Kind.text,
        Kind.control,
    ]


def test_a_line_of_words_joins_bytes_and_stays_one_line(vocabulary, tokenizer):
    ids = tokenizer.backend_tokenizer.encode("a\n\n\u4f60\t b\x1b", add_special_tokens=False).ids

    assert read_line(vocabulary.pieces(ids, ids), 80) == "a \u4f60 b\\x1b"
    assert read_line(vocabulary.pieces(ids, ids), 4) == "a \u4f60\u2026"


def read_back(lines):
    """Undo the plain form: give each token's text, with its marks undone, and whether it is learned."""
    found, line_ended = [], True
    for line in lines:
        learned, body = line.startswith("+"), line[2:]
        if line_ended is None and not body:  # a further line break of the same token
            continue
        for token in body.split("\u2502"):
            found.append(
                (token.replace("\u2423", " ").replace("\u21e5", "\t").replace("\u21b5", "\n"), learned)
            )
        line_ended = None if body.endswith("\u21b5") else False
    return found


@pytest.mark.parametrize("turns", ODD)
def test_the_plain_form_tells_every_token_and_the_whole_mask(turns, tokenizer, vocabulary):
    row = build_rows(tokenizer, [turns])[0]
    pieces = vocabulary.pieces(row["input_ids"], row["labels"])
    expected = []
    for before, piece in zip([None, *pieces], pieces, strict=False):
        parts = split_piece(piece, before, escaped=Signs().escaped())
        expected.append(("".join(part.text for part in parts), piece.learned))

    assert read_back(token_lines(pieces, PLAIN)) == expected
    assert [learned for _, learned in expected] == [label != -100 for label in row["labels"]]


def test_learned_lines_and_no_others_begin_with_a_plus(survey):
    page = render(survey([["Hi", "model\n+ ok\nuser"]]), PLAIN)
    rows = page[page.index("row 1") : page.index("\n\ndata ")].splitlines()[2:]

    assert [line[:2] for line in rows] == ["  ", "  ", "  ", "+ ", "+ ", "+ "]
    assert rows[0] == "  <bos>\u2502<start_of_turn>\u2502user\u2502\u21b5"
    assert rows[-1] == "+ user\u2502<end_of_turn>\u2502\u21b5"


def test_signs_that_stand_in_the_data_are_written_out(survey):
    page = render(survey([["a", "b\u2502c\u21b5d\u2423"]]), PLAIN)
    assert all(
        sign not in page.split("\nrow 1")[1].split("+ ")[1].split("<end")[0] for sign in "\u21b5\u2423"
    )


@pytest.mark.parametrize("ink", [PLAIN, COLOUR, Ink(colour=True, signs=ASCII, width=40)])
def test_nothing_of_the_data_reaches_the_terminal_as_a_command(ink, survey):
    page = CODES.sub("", render(survey(ODD), ink))

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", page)
    assert "<0x1B>" in page


def test_colour_tells_learned_from_read_and_token_from_token(survey):
    page = render(survey([["the the", "the the"]]), COLOUR)
    asked = next(line for line in page.splitlines() if CODES.sub("", line).startswith("  the the"))
    answered = next(line for line in page.splitlines() if CODES.sub("", line).startswith("+ the"))
    shades = re.findall(r"\x1b\[([\d;]*)m[^\x1b]+\x1b\[0m", answered)

    assert all("32" in shade.split(";") for shade in shades[:-2])
    assert shades[1] != shades[2]
    assert "32" not in "".join(CODES.findall(asked))


def test_a_narrow_terminal_breaks_lines_between_tokens(survey):
    talks = [["the " * 60, "\u4f60\u597d" * 30]]
    narrow = render(survey(talks), Ink(colour=True, signs=Signs(), width=60))
    rows = CODES.sub("", narrow.split("row 1")[1].split("data ")[0])

    assert max(map(len, rows.splitlines())) <= 60
    assert rows.count("the") >= 60


@pytest.mark.parametrize("width", [48, 60, 80])
def test_what_is_drawn_and_hinted_at_stays_on_its_line(width, survey):
    ink = Ink(colour=False, signs=Signs(), width=width)
    page = render(survey([["Hi", "\u4f60" * 400], ["Hi", "the " * 100]]), ink)
    below = page.split("length in tokens", 1)[1].split("worth a look")[0].splitlines()

    assert max(columns(line) for line in below if not line.startswith("  \u2500")) <= width
    assert "\u2588" * 8 in page
    assert "\u4f60\u2026\n" in page


def test_a_row_that_is_cut_says_where_and_how_much(survey):
    page = render(survey([["Hi", "the " * 50]], 20), PLAIN)

    assert re.search(
        r"20 tokens, \d+ learned \(\d+%\); cut: \d+ tokens of \d+ lost; 1 learned turn without", page
    )
    assert "\u2500\u2500\u2500 cut here, " in page


@pytest.mark.parametrize(
    ("environment", "terminal", "colour"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, True),
    ],
)
def test_colour_follows_the_terminal_and_the_environment(environment, terminal, colour, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    ink = Ink.of(SimpleNamespace(isatty=lambda: terminal, encoding="utf-8"))
    assert ink.colour is colour
    assert (ink.width is None) is not terminal


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", None, "no-such"])
def test_a_stream_that_cannot_print_the_signs_gets_plain_ones(encoding, survey):
    ink = Ink.of(SimpleNamespace(isatty=lambda: False, encoding=encoding))
    assert ink.signs is ASCII
    assert render(survey([["a", "b\n  c"]]), ink).isascii()


def test_lengths_agree_with_those_of_numpy():
    rng = random.Random(1)
    values = [rng.randint(1, 300) for _ in range(999)]
    lengths = Lengths(Counter(values))

    assert (lengths.rows, lengths.tokens, lengths.longest) == (999, sum(values), max(values))
    for share in (0.01, 0.5, 0.95, 1):
        assert lengths.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    assert lengths.rows_up_to(100) == sum(value <= 100 for value in values)
    assert lengths.tokens_beyond(200) == sum(max(value - 200, 0) for value in values)


@pytest.mark.parametrize("cut", [1, 7, 25, 64, 100, 512, 2048])
@pytest.mark.parametrize(
    "values",
    [[1], [23] * 40, list(range(1, 600)), [30] * 999 + [100_000], [1, 2, 3, 64, 65], [2048] * 3 + [2049]],
)
def test_bins_hold_every_row_once_with_an_edge_at_the_cut(values, cut):
    bins = Lengths(Counter(values)).bins(cut)

    assert sum(each.rows for each in bins) == len(values)
    assert bins[0].above == 0
    assert all(a.up_to == b.above for a, b in pairwise(bins))
    assert len(bins) <= 45
    for each in bins:
        within = [v for v in values if each.above < v and (each.up_to is None or v <= each.up_to)]
        assert each.rows == len(within)
        assert each.above >= cut or each.up_to is None or each.up_to <= cut or max(values) <= cut


def best_fit_decreasing(values, most):
    rooms = []
    for value in sorted(values, reverse=True):
        fitting = [room for room in rooms if room >= value]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else most) - value)
    return len(rooms)


def test_packed_sequences_are_counted_as_if_the_rows_had_been_packed():
    rng = random.Random(3)
    for _ in range(200):
        most = rng.randint(1, 50)
        values = [rng.randint(1, most) for _ in range(rng.randint(1, 120))]
        assert count_packed(Lengths(Counter(values)), most) == best_fit_decreasing(values, most)


def test_many_rows_are_counted_as_they_are_packed_a_thousand_at_a_time(tmp_path):
    rng = random.Random(4)
    lengths = [rng.randint(1, 20) for _ in range(2500)]
    ids = [[7] * length for length in lengths]
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, "length": lengths})

    assert count_sequences(rows, 512) == pack(rows, 512, tmp_path).num_rows > -(-sum(lengths) // 512)


def test_padding_is_that_of_rows_in_a_random_order():
    rng = random.Random(5)
    values = [int(rng.lognormvariate(4, 0.8)) + 1 for _ in range(40_000)]
    lengths = Lengths(Counter(values))
    places = sum(4 * max(values[i : i + 4]) for i in range(0, len(values), 4))

    assert expected_padding(lengths, 1) == pytest.approx(0, abs=1e-9)
    assert expected_padding(lengths, 4) == pytest.approx(1 - sum(values) / places, abs=0.01)
    assert expected_padding(Lengths({23: 40}), 8) == 0


def values_by_hand(rows, is_byte):
    seen = Counter(number for ids in rows["input_ids"] for number in ids)
    total = sum(seen.values())
    for row in rows:
        ids = row["input_ids"]
        yield {
            "full_length": row["full_length"],
            "trained": sum(label != -100 for label in row["labels"]),
            "trained_share": sum(label != -100 for label in row["labels"]) / len(ids),
            "distinct": len(set(ids)) / len(ids),
            "bytes": sum(number in is_byte for number in ids) / len(ids),
            "rarity": sum(-np.log2(seen[number] / total) for number in ids) / len(ids),
        }


def some_talks(number, seed=0):
    rng = random.Random(seed)
    words = ["the", "cat", "\u4f60", "sat", "ok", "x" * 9, "7"]

    def say(most):
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, most)))

    return [[say(9), say(30)] for _ in range(number)]


@pytest.mark.parametrize("batch_rows", [1, 3, 1000])
def test_the_strangest_rows_are_those_found_by_hand(batch_rows, tokenizer, vocabulary, monkeypatch):
    monkeypatch.setattr(measures, "_BATCH_ROWS", batch_rows)
    rows = build_rows(tokenizer, some_talks(25), 40)
    by_hand = list(values_by_hand(rows, vocabulary.byte_ids))
    measured = measure_rows(rows, vocabulary, 40)

    assert measured.lengths == Counter(rows["length"])
    assert measured.full_lengths == Counter(rows["full_length"])
    assert sum(measured.trained_shares) == 25
    for measure in MEASURES:
        sign = -1 if measure.highest else 1
        ranked = sorted(range(25), key=lambda row: (sign * round(by_hand[row][measure.name], 9), row))
        assert [row for _, row in measured.top[measure.name]] == ranked[: measure.most], measure.name
        for value, row in measured.top[measure.name]:
            assert value == pytest.approx(by_hand[row][measure.name])


def test_rows_that_were_chosen_from_a_table_are_measured_alike(tokenizer, vocabulary):
    rows = build_rows(tokenizer, some_talks(12))
    chosen = rows.select([7, 3, 3, 11])
    found = measure_rows(chosen, vocabulary, 10_000)

    assert found.lengths == Counter(rows["length"][row] for row in (7, 3, 3, 11))


def test_the_sample_is_the_same_each_time_and_another_for_another_seed(tokenizer, vocabulary):
    data = build_data(tokenizer, some_talks(60))

    def places(seed, rows=5):
        return [row.where for row in survey_data(data, RunConfig(seed=seed), vocabulary, rows=rows).sample]

    assert places(1) == places(1)
    assert places(1) != places(2)
    assert len(places(1)) == 5
    assert len(set(places(1, rows=1000))) == 60
    assert places(1, rows=0) == []


def test_rows_of_bytes_are_not_told_of_where_there_are_none(survey):
    assert "bytes" not in [measure.name for measure, _ in survey([["the", "ok"]]).notable]
    assert "bytes" in [measure.name for measure, _ in survey([["the", "\u4f60"]]).notable]


def test_dropped_rows_are_told_by_cause_with_the_first_places(survey, tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    rows = [{"where": f"x:{i}", "cause": "empty", "message": f"x:{i}: is empty"} for i in range(9)]
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second.write_text('{"where": "y:1", "cause": "no JSON", "message": "y:1: no JSON \\u001b[0m"}\n')
    copies = np.array([False, True, False, True, False])
    part = {"dropped": first, "held_out": second, "left_out": {"copy of an earlier row": copies}}
    facts = {"rows_dropped": {"copy of an earlier row": 2, "empty": 9}, "held_out_dropped": {"no JSON": 1}}
    found = survey(ODD, part=part, **facts)

    assert [(each.cause, each.rows, len(each.messages)) for each in found.dropped] == [
        ("empty", 9, 3),
        ("copy of an earlier row", 2, 2),
        ("no JSON", 1, 1),
    ]
    text, page = render(found, PLAIN), build_page(found)
    assert (
        "left out: 9 rows, empty\n  x:0: is empty\n  x:1: is empty\n  x:2: is empty\n  ... and 6 more" in text
    )
    assert "left out: 2 rows, copy of an earlier row\n  chats.jsonl:2\n  chats.jsonl:4\n" in text
    for written in (text, page):
        assert "1 held-out row, no JSON" in written
        assert "y:1: no JSON \\x1b[0m" in written


def test_columns_that_are_not_read_are_named(survey):
    assert "\ncolumns   not read: id, \\x1btags\n" in render(
        survey(ODD, unused_columns=["id", "\x1btags"]), PLAIN
    )
    assert "not read" not in render(survey([["Hi", "Hello"]]), PLAIN)


def test_rows_that_are_split_or_that_a_mixture_repeats_or_leaves_are_counted(survey):
    def rows(**facts):
        return next(
            line for line in render(survey(ODD, **facts), PLAIN).splitlines() if line.startswith("rows")
        )

    assert rows() == "rows      5 read; 5 to train on, 0 held out, 0 left out"
    assert rows(rows_read=3).startswith("rows      3 read and split into 5; 5 to train on, ")
    assert "7 to train on (2 of them repeats), " in rows(rows_train=7)
    assert "4 to train on (1 more are not in the mixture), " in rows(rows_train=4)
    assert "from 3 read" in build_page(survey(ODD, rows_read=3))


def test_what_is_likely_not_meant_is_said_with_what_changes_it(survey):
    talks = some_talks(20)
    assert list(find_notes(survey(talks, 2000, rows_held_out=3, packing=False)))[-1].endswith(
        "trainer.packing=true does that."
    )
    notes = list(find_notes(survey(talks, 40, duplicates=4, overlap=2, dataset={"overlap": Copies.keep})))
    assert [note.split(" ")[0] for note in notes] == ["Cut:", "Copies", "Rows", "No"]
    kept = survey(talks[:1], duplicates=4, rows_held_out=1, dataset={"duplicates": Copies.drop})
    assert list(find_notes(kept)) == []


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_batches_are_told_with_what_padding_costs_and_packing_gives(micro_batch_size, survey):
    page = render(survey(some_talks(20), 100, micro_batch_size=micro_batch_size), PLAIN)
    line = next(line for line in page.splitlines() if line.startswith("batches"))
    cost = "nothing is padded" if micro_batch_size == 1 else r"\d+% of what is computed is padding"

    assert re.fullmatch(
        rf"batches   micro-batches of .*, {cost}; packing would make \d+ sequences, \d+% full", line
    )


class Reader(HTMLParser):
    """Reads a page, and refuses one whose elements do not nest."""

    EMPTY = ("meta", "br", "!doctype")

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes, self.learned, self.tokens = [], Counter(), Counter(), 0, 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        if tag == "i" and any(name == "title" for name, _ in attrs):
            self.tokens += 1
            self.learned += "mark" in self.open
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("talks", [ODD, [["Hi", "Hello"]], [["Hi", "Hello"]] * 30])
@pytest.mark.parametrize("max_length", [10, 10_000])
def test_the_page_holds_every_token_and_nothing_but_itself(talks, max_length, survey):
    found = survey(talks, max_length)
    page = build_page(found)
    reader = Reader(page)

    assert reader.tokens == found.facts["tokens"]
    assert reader.learned == found.facts["trained_tokens"]
    assert reader.seen["svg"] >= 3
    assert not set(reader.seen) & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not {
        name for name in reader.attributes if name in ("src", "href", "style") or name.startswith("on")
    }
    assert not re.search(r"url\(|@import|https?:|//", page)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)


def test_the_text_of_the_data_is_never_markup(survey):
    evil = "<script>alert(1)</script></style></title>&amp;\"'<i title=x>"
    page = build_page(
        survey(
            [[evil, evil]],
            rows_dropped={evil: 1},
            mixture={evil: {"weight": 1, "tokens": 1, "tokens_share": 1, "rows": 1, "rows_share": 1}},
            path=evil,
        )
    )

    assert Reader(page).seen["script"] == 0
    assert page.count("</style>") == page.count("</title>") - page.count("<title>", page.index("<svg")) == 1
    assert "&amp;amp;" in page


def test_elements_escape_text_and_keep_markup():
    inner = element("b", "<&", title='"')
    assert inner == '<b title="&quot;">&lt;&amp;</b>'
    assert element("p", inner, "<", class_="x", id=None) == f'<p class="x">{inner}&lt;</p>'
    assert isinstance(inner, Markup)


def test_plots_name_their_axes_and_bars_for_those_who_cannot_see_them(survey):
    page = build_page(survey(some_talks(40), 30))

    assert "cut at 30" in page
    assert re.search(
        r'aria-label="Histogram: tokens of a row, before the cut\. \d+ to \d+ tokens: \d+ rows', page
    )
    assert "<figcaption>share of a row&#x27;s tokens that is learned</figcaption>" in page
    assert re.search(r"<title>\d+% to \d+%: \d+ rows</title>", page)


def test_the_first_and_the_last_label_of_an_axis_stay_on_a_narrow_page():
    for cut, longest in ((300, 1000), (16, 90), (100, 300), (2048, 9000), (7, 40)):
        plot = length_plot(Lengths({1: 5, longest: 1}).bins(cut), cut)
        labels = re.findall(r'<text x="[\d.]+%"[^>]*text-anchor="\w+"( class="odd")?>([^<]+)<', plot)

        assert labels[0] == ("", "0")
        assert labels[-1] == ("", "more")
        assert all(hidden or after for (hidden, _), (after, _) in pairwise(labels[1:]))


def test_the_keyboard_reaches_rows_that_may_have_to_be_scrolled(survey):
    assert "tabindex" not in build_page(survey([["Hi", "the " * 20]]))
    for words in ("the " * 200, "a\n" * 20):
        assert 'tabindex="0"' in build_page(survey([["Hi", words]]))


def test_a_page_with_packing_shows_how_full_the_sequences_are(survey, tokenizer, vocabulary):
    import datasets

    data = build_data(tokenizer, some_talks(10), 100)
    data.facts["packing"] = {"sequences": 3, "efficiency": 0.9}
    data.train = datasets.Dataset.from_dict({"seq_lengths": [[50, 50], [60, 30], [20]]})
    config = RunConfig(dataset=DatasetConfig(path="chats.jsonl"))
    config.trainer.max_length, config.trainer.packing = 100, True
    found = survey_data(data, config, vocabulary, rows=0)

    assert [step for step, number in enumerate(found.batches.fills) if number] == [4, 18, 19]
    assert "share of a sequence that is tokens" in build_page(found)
    assert "10 rows packed into 3 sequences" in render(found, PLAIN)
