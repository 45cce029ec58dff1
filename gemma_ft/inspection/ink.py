"""Signs and colours for text: what a terminal shows, and what a file or a pipe gets."""

import math
import os
import shutil
import textwrap
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import TextIO

_LEAST_WIDTH = 20
_RESET = "\x1b[0m"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """Characters that stand for what would not be seen."""

    space: str = "\u2423"
    tab: str = "\u21e5"
    newline: str = "\u21b5"
    between: str = "\u2502"
    """What divides two tokens where there is no colour."""
    bar: str = "\u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
    """A column of a bar, from the least part to a full one."""
    rule: str = "\u2500"
    more: str = "\u2026"

    def escaped(self) -> frozenset[str]:
        """Tell which characters are written out where the data itself holds them."""
        return frozenset(
            sign for sign in (self.space, self.tab, self.newline, self.between) if len(sign) == 1
        )


ASCII = Signs(space="\\x20", tab="\\t", newline="\\n", between="|", bar="#", rule="-", more="...")
"""For a stream that cannot print the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ink:
    """How a stream is written to."""

    colour: bool
    signs: Signs
    width: int | None
    """Columns at which rows of tokens are broken; None leaves that to the reader."""

    @classmethod
    def of(cls, stream: TextIO) -> "Ink":
        """Look at a stream and the environment: NO_COLOR, FORCE_COLOR, TERM."""
        terminal = stream.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        return cls(colour=_wants_colour(terminal), signs=_signs_of(stream), width=width)

    def paint(self, text: str, *codes: int) -> str:
        """Give text a look, in the numbers of ANSI escapes."""
        if not (self.colour and codes and text):
            return text
        return f"\x1b[{';'.join(map(str, codes))}m{text}{_RESET}"

    def wrap(self, text: str, *, indent: int) -> list[str]:
        """Break a sentence into lines that fit beside an indent."""
        if self.width is None:
            return [text]
        return textwrap.wrap(text, max(self.width - indent, _LEAST_WIDTH), break_on_hyphens=False)

    def fit(self, text: str, *, indent: int) -> str:
        """Shorten words that are a hint only, so that they stay on the line that they begin on."""
        room = math.inf if self.width is None else max(self.width - indent, _LEAST_WIDTH)
        reached = list(accumulate(map(columns, text)))
        if not text or reached[-1] <= room:
            return text
        return text[: bisect_left(reached, room)].rstrip() + self.signs.more

    def bar(self, share: float, width: int) -> str:
        """Draw a bar of so many columns at most; a little is seen as a little."""
        steps = len(self.signs.bar)
        full, part = divmod(math.ceil(share * width * steps), steps)
        return self.signs.bar[-1] * full + (self.signs.bar[part - 1] if part else "")


def _wants_colour(terminal: bool) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return terminal and os.environ.get("TERM") != "dumb"


def _signs_of(stream: TextIO) -> Signs:
    signs = Signs()
    try:
        "".join(getattr(signs, name) for name in Signs.__slots__).encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return signs


def columns(text: str) -> int:
    """Count the columns that a terminal gives to a text, as nearly as its characters tell."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me") for char in text)
