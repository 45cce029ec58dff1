"""Tokens as text that can be shown: control tokens and bytes told apart, nothing invisible left invisible."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

from gemma_ft import families

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WHITE = re.compile(r"(\n+|[ \t]+)")
_SPACE_OF_VOCABULARY = "\u2581"
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
_DOTTED_CIRCLE = "\u25cc"  # what a sign that changes the one before it is printed on when it stands alone
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)  # two of them are shown as a flag
_ELLIPSIS = "\u2026"


class Kind(StrEnum):
    """What a token is."""

    text = "text"
    control = "control"
    byte = "byte"


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a row."""

    id: int
    text: str
    """What it stands for; the names of control tokens and bytes."""
    kind: Kind
    learned: bool

    @property
    def ends_line(self) -> bool:
        """Whether a line break ends it."""
        return self.kind is Kind.text and self.text.endswith("\n")


class Look(StrEnum):
    """How a part of a token is to be shown."""

    plain = "plain"
    space = "space"
    newline = "newline"
    escape = "escape"


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring characters of a token that are shown alike."""

    text: str
    """As it is to be printed; spaces, tabs and line breaks are left for the printer to mark."""
    look: Look


class Vocabulary:
    """Reads ids as pieces."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Look up which ids are control tokens and bytes."""
        self._tokenizer = tokenizer
        turns = tokenizer.convert_tokens_to_ids([families.START_OF_TURN, families.END_OF_TURN])
        self._control = {*tokenizer.all_special_ids, *turns}
        vocabulary = tokenizer.get_vocab()
        self.size = max(vocabulary.values()) + 1
        self.byte_ids = frozenset(number for token, number in vocabulary.items() if _BYTE.fullmatch(token))

    def pieces(self, ids: Sequence[int], labels: Sequence[int]) -> tuple[Piece, ...]:
        """Read a row.

        Args:
            ids: Its tokens.
            labels: The same where they are learned.
        """
        tokens = self._tokenizer.convert_ids_to_tokens(list(ids))
        return tuple(
            Piece(number, token.replace(_SPACE_OF_VOCABULARY, " "), self._kind(number), number == label)
            for number, token, label in zip(ids, tokens, labels, strict=True)
        )

    def _kind(self, number: int) -> Kind:
        if number in self._control:
            return Kind.control
        return Kind.byte if number in self.byte_ids else Kind.text


def show(text: str) -> str:
    """Write out what a terminal or a browser would obey, hide or attach to something else."""
    return "".join(part.text for part in _visible_parts(text, frozenset()))


def split_piece(piece: Piece, before: Piece | None, *, escaped: frozenset[str] = frozenset()) -> list[Part]:
    """Cut a token into the parts that are shown in different ways.

    Spaces and tabs are marked where they would not be seen or could be miscounted: more than one at once, at
    the start of a line, and at the end of a token. The space between two words stays one.

    Args:
        piece: The token.
        before: The token before it.
        escaped: Further characters to be written out, because the printer uses them as signs.
    """
    if piece.kind is not Kind.text:
        return [Part(show(piece.text), Look.plain)]
    parts: list[Part] = []
    runs = [run for run in _WHITE.split(piece.text) if run]
    starts_line = before is None or before.kind is Kind.control or before.ends_line
    for place, run in enumerate(runs):
        if run[0] == "\n":
            parts.append(Part(run, Look.newline))
        elif run[0] not in " \t":
            parts += _visible_parts(run, escaped)
        elif run == " " and place + 1 < len(runs) and runs[place + 1][0] != "\n" and not starts_line:
            parts.append(Part(run, Look.plain))
        else:
            parts.append(Part(run, Look.space))
        starts_line = run[0] == "\n"
    return [Part("".join(part.text for part in group), look) for look, group in groupby(parts, _look)]


def _look(part: Part) -> Look:
    return part.look


def _visible_parts(text: str, escaped: frozenset[str]) -> Iterator[Part]:
    if text.isascii() and text.isprintable() and escaped.isdisjoint(text):
        yield Part(text, Look.plain)
        return
    for hidden, chars in groupby(text, lambda char: char in escaped or _is_unseen(char)):
        run = "".join(chars)
        if hidden:
            yield Part("".join(map(_escape, run)), Look.escape)
        elif ord(run[0]) in _SKIN_TONES:  # fonts have no such sign on a circle
            yield Part(_escape(run[0]), Look.escape)
            yield from _visible_parts(run[1:], escaped)
        else:
            yield Part(_DOTTED_CIRCLE + run if _joins(run) else run, Look.plain)


def _joins(text: str) -> bool:
    """Tell whether a text would be drawn as a part of the one before it, or with the one after it."""
    flag_letter = len(text) == 1 and ord(text) in _FLAG_LETTERS
    return unicodedata.category(text[0])[0] == "M" or flag_letter


def _is_unseen(char: str) -> bool:
    return char != " " and unicodedata.category(char) in _UNSEEN


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def read_line(pieces: Sequence[Piece], most: int) -> str:
    """Read the words of some tokens as one line.

    Args:
        pieces: The tokens.
        most: Characters to keep.
    """
    words = b"".join(_spoken(piece) for piece in pieces).decode("utf-8", errors="replace")
    line = show(" ".join(words.split()))
    return line if len(line) <= most else line[: most - 1].rstrip() + _ELLIPSIS


def _spoken(piece: Piece) -> bytes:
    match piece.kind:
        case Kind.control:
            return b" "
        case Kind.byte:
            return bytes([int(piece.text[3:5], 16)])
        case _:
            return piece.text.encode("utf-8", errors="replace")
