"""Rows token by token as HTML."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from gemma_ft.inspection import summary
from gemma_ft.inspection.markup import Markup, element, join
from gemma_ft.inspection.pieces import Kind, Look, Part, Piece, show, split_piece
from gemma_ft.inspection.survey import SampledRow

_LONG_ROW = 600
"""Columns from which a row may have to be scrolled on a narrow page, so that the keyboard must reach it."""
_LINE = 40
_NEWLINE, _SPACE, _TAB = "\u21b5", "\u00b7", "\u2192"


def row_block(row: SampledRow, number: int) -> Markup:
    """Build a row: its place, its numbers, its tokens."""
    long = sum(len(piece.text) + _LINE * piece.text.count("\n") for piece in row.pieces) > _LONG_ROW
    end = f"cut here, {row.lost:,} tokens before the end"
    return element(
        "article",
        element("h3", show(row.where), class_="where"),
        element("p", summary.row_line(row), class_="about"),
        element(
            "div",
            *token_lines(row.pieces),
            element("div", end, class_="end") if row.lost else "",
            class_="tokens",
            tabindex="0" if long else None,
            role="region" if long else None,
            aria_label=f"Tokens of sampled row {number}" if long else None,
        ),
        class_="row",
    )


def token_lines(pieces: Sequence[Piece]) -> Iterator[Markup]:
    """Build a block for each line of a row's tokens."""
    line: list[tuple[bool, Markup]] = []
    before: Piece | None = None
    for number, piece in enumerate(pieces):
        run: list[Markup] = []
        for part in split_piece(piece, before):
            run.append(_part(part))
            if part.look is Look.newline:
                line.append((piece.learned, _token(piece, run, odd=number % 2 == 1)))
                yield _line(line)
                yield from (element("div") for _ in part.text[1:])
                line, run = [], []
        if run:
            line.append((piece.learned, _token(piece, run, odd=number % 2 == 1)))
        before = piece
    if line:
        yield _line(line)


def _line(tokens: Sequence[tuple[bool, Markup]]) -> Markup:
    runs = []
    for learned, group in groupby(tokens, lambda token: token[0]):
        run = join(*(token for _, token in group))
        runs.append(element("mark", run) if learned else run)
    return element("div", *runs)


def _token(piece: Piece, parts: Sequence[Markup], *, odd: bool) -> Markup:
    kinds = {Kind.text: "", Kind.control: "c", Kind.byte: "b"}
    classes = " ".join(filter(None, (kinds[piece.kind], "o" if odd else "")))
    return element("i", *parts, class_=classes or None, title=f"id {piece.id}")


def _part(part: Part) -> Markup:
    match part.look:
        case Look.newline:
            return element("s", _NEWLINE * len(part.text))
        case Look.space:
            return element("s", part.text.replace(" ", _SPACE).replace("\t", _TAB))
        case Look.escape:
            return element("u", part.text)
        case _:
            return join(part.text)
