"""Lines of a text file as bytes, so that a fault in one leaves the next ones readable."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from gemma_ft.data.sources.foreign import HEAD_BYTES, refuse_foreign
from gemma_ft.data.sources.rows import RowError


def read_lines(file: Path, name: str) -> Iterator[tuple[int, bytes]]:
    r"""Read the lines of a file with their numbers, counted from 1; they end with \n, \r\n or \r.

    Args:
        file: The file.
        name: What it is called in messages.

    Raises:
        DataError: It is no text of UTF-8 at all.
        OSError: It cannot be read.
    """
    number = 0
    with file.open("rb") as content:
        refuse_foreign(file.suffix, content.peek(HEAD_BYTES)[:HEAD_BYTES], name)
        for line in content:
            if number == 0:
                line = line.removeprefix(BOM_UTF8)
            if line.find(b"\r", 0, len(line) - 2) < 0:
                number += 1
                yield number, line
                continue
            for piece in line.splitlines(keepends=True):
                number += 1
                yield number, piece


def decode_line(line: bytes, where: str) -> str:
    """Decode one line.

    Raises:
        RowError: It is no UTF-8, or holds what a crash leaves behind.
    """
    if b"\0" in line:
        raise RowError(
            where, "NUL bytes", "The file is damaged, or was not written to its end: write it again."
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"at byte {error.start + 1} of the line"
        raise RowError(where, "bad UTF-8", "Save the file as UTF-8.", detail=detail) from None
