"""The few rows of a run's own data that its export is measured on, recorded when it is trained."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.shards import write_text
from gemma_ft.exporting.merging.tensor_files import read_json

MOST_ROWS = 16
LONGEST_ROW = 512
UNLEARNED = -100
"""The label of a token that is read but not learned, as everywhere in transformers."""

Source = Literal["held_out", "training"]

_LOOKED_AT = 2000  # enough to find short ones; a large held-out part is not read to its end
_LEARNED_TAIL = 16  # learned tokens kept of a row whose first one comes late


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One sequence."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The same ids where they are learned, -100 elsewhere."""

    @property
    def first_learned(self) -> int:
        """Return the position of the first learned token, the very first token aside: nothing predicts it."""
        return next((i for i, label in enumerate(self.labels) if i and label != UNLEARNED), len(self.labels))

    @property
    def learned(self) -> int:
        """Count the learned tokens that something predicts."""
        return sum(label != UNLEARNED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class CertificateRows:
    """The recorded rows, and where they come from."""

    source: Source
    rows: tuple[CertificateRow, ...]


def choose_rows(
    rows: Iterable[Mapping[str, Sequence[int]]], count: int = MOST_ROWS, longest: int = LONGEST_ROW
) -> list[CertificateRow]:
    """Choose rows to record: the first ones that fit whole, then the first of the others, cut.

    Each has something learned within what is kept of it. The same rows give the same choice.

    Args:
        rows: `input_ids` and `labels` of each, unpacked.
        count: How many at most.
        longest: Tokens of each at most.
    """
    whole: list[CertificateRow] = []
    cut: list[CertificateRow] = []
    for number, row in enumerate(rows):
        if number == _LOOKED_AT or len(whole) == count:
            break
        made = CertificateRow(tuple(map(int, row["input_ids"])), tuple(map(int, row["labels"])))
        if len(made.labels) != len(made.input_ids) or not made.learned:
            continue
        if len(made.input_ids) <= longest:
            whole.append(made)
        elif len(cut) < count:
            cut.append(cut_row(made, longest))
    return (whole + cut)[:count]


def cut_row(row: CertificateRow, longest: int) -> CertificateRow:
    """Shorten a row so that something learned stays in it.

    Its end goes first. Where the learned part begins too late for that, the middle goes: the first token
    (<bos>), and what stands right before the learned part, stay.
    """
    tail = min(_LEARNED_TAIL, longest // 4)
    end = max(longest, min(row.first_learned + tail, len(row.input_ids)))

    def kept(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:longest] if end == longest else (values[0], *values[end - longest + 1 : end])

    return CertificateRow(kept(row.input_ids), kept(row.labels))


def write_rows(path: Path, rows: Sequence[CertificateRow], source: Source) -> None:
    """Write recorded rows as JSON, and read them back.

    Raises:
        ExportError: They read back differently.
    """
    content = {
        "source": source,
        "rows": [{"input_ids": row.input_ids, "labels": row.labels} for row in rows],
    }
    write_text(path, "".join(_one_row_a_line(content)))
    if read_rows(path) != CertificateRows(source, tuple(rows)):
        raise ExportError(f"{path} was written, but reads back differently. Is the disk in order?")


def _one_row_a_line(content: Mapping[str, Any]) -> Iterator[str]:
    lines = ",\n".join(json.dumps(row) for row in content["rows"])
    yield f'{{"source": {json.dumps(content["source"])}, "rows": [\n{lines}\n]}}\n'


def read_rows(path: Path) -> CertificateRows:
    """Read recorded rows.

    Raises:
        ExportError: The file is missing or holds something else.
    """
    content = read_json(path)
    try:
        source = content["source"]
        if source not in ("held_out", "training"):
            raise ValueError(f"its source is {source!r}")
        rows = tuple(
            CertificateRow(tuple(map(int, row["input_ids"])), tuple(map(int, row["labels"])))
            for row in content["rows"]
        )
        for number, row in enumerate(rows):
            if len(row.input_ids) != len(row.labels) or not row.learned:
                raise ValueError(f"row {number} has nothing to measure")
    except (KeyError, TypeError, ValueError) as problem:
        raise ExportError(
            f"{path} holds no rows for a certificate ({problem}). Restore it, or export with "
            "export.certificate=none."
        ) from problem
    return CertificateRows(source, rows)
