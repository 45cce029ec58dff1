"""The sources of a run with their tokens, and which of their rows are used for what."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gemma_ft.config.dataset import Copies, DatasetConfig, NearCopies, row_parts
from gemma_ft.config.rows import MixturePart
from gemma_ft.data.holdout import hold_out
from gemma_ft.data.near_duplicates import check_library, find_near_duplicates
from gemma_ft.data.sources.opening import open_source
from gemma_ft.data.store import StoredTokens, load_tokens
from gemma_ft.data.tokenise import TokenJob
from gemma_ft.data.tokens.encoding import TokenRules
from gemma_ft.errors import DataError

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerFast

    Array = numpy.ndarray[Any, Any]


_IN_EVAL_SPLIT = "in eval_split as well"
_DUPLICATE = "copy of an earlier row"
_NEAR_DUPLICATE = "almost the same as an earlier row"


@dataclass(kw_only=True, slots=True)
class Part:
    """One source with its tokens, and which of its rows are used for what."""

    name: str
    """Its name in the mixture; empty where there is one source."""
    revision: str | None
    weight: float
    train: StoredTokens
    held_out: StoredTokens | None
    """Tokens of its eval_split."""
    digests: "Array"
    """Content of its training rows."""
    aside: "Array"
    """Whether a row of `train` is held out: it is evaluated, or the copy of one that is."""
    overlap: "Array"
    """Whether a row of `train` stands in an eval_split as well."""
    duplicate: "Array"
    """Whether a row of `train` is the exact copy of one before it that is trained on."""
    near_duplicate: "Array"
    """Whether a row of `train` is almost one before it."""
    used: "Array"
    """Whether a row of `train` may be trained on."""
    left_out: "dict[str, Array]" = field(default_factory=dict)
    """Which rows of `train` are not used because they stand elsewhere too, by cause."""

    def leave_out(self, cause: str, rows: "Array") -> None:
        """Take rows away from those that may be trained on."""
        self.used = self.used & ~rows
        if rows.any():
            self.left_out[cause] = rows

    def left_out_rows(self) -> Iterator[dict[str, str]]:
        """List the rows that stand elsewhere too, in the form of `train.dropped`."""
        for cause, marks in self.left_out.items():
            chosen = self.train.rows.select_columns(["where"]).select(marks.nonzero()[0])
            for row in chosen:
                yield {"where": row["where"], "cause": cause, "message": f"{row['where']}: {cause}."}

    def data_sha256(self) -> str:
        """Hash the content of all rows that were read."""
        hashes = [stored.report["data_sha256"] for stored in (self.train, self.held_out) if stored]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_parts(dataset: DatasetConfig, tokenizer: "PreTrainedTokenizerFast", rules: TokenRules) -> list[Part]:
    """Open every source of the rows and load its tokens.

    Raises:
        DataError: A row or file cannot be used, or a library is missing.
        HubError: The hub is needed and does not give the rows.
    """
    import numpy as np

    check_library(dataset.near_duplicates)
    state = tokenizer.backend_tokenizer.to_str()  # tens of megabytes: hashed once for all sources
    tokenizer_sha256 = hashlib.sha256(state.encode("utf-8")).hexdigest()
    parts = []
    for prefix, rows in row_parts(dataset).items():
        source = open_source(rows, prefix)
        job = TokenJob(
            source=source,
            rows=rows,
            split=rows.split,
            key=f"{prefix}.split",
            most=rows.max_rows,
            dataset=dataset,
            tokenizer=tokenizer,
            tokenizer_sha256=tokenizer_sha256,
            rules=rules,
        )
        train = load_tokens(job)
        held_out = None
        if rows.eval_split is not None:
            held_out = load_tokens(replace(job, split=rows.eval_split, key=f"{prefix}.eval_split", most=None))
        nothing = np.zeros(train.rows.num_rows, bool)
        parts.append(
            Part(
                name=prefix.removeprefix("dataset").removeprefix(".mixture."),
                revision=source.revision,
                weight=rows.weight if isinstance(rows, MixturePart) else 1.0,
                train=train,
                held_out=held_out,
                digests=train.digests(),
                aside=nothing,
                overlap=nothing,
                duplicate=nothing,
                near_duplicate=nothing,
                used=~nothing,
            )
        )
    return parts


def set_aside(parts: Sequence[Part], dataset: DatasetConfig, seed: int) -> None:
    """Mark what is held out: a share of the distinct rows, and what stands in an eval_split as well."""
    import numpy as np

    shared = [part.digests for part in parts if part.held_out is None]
    distinct = np.unique(np.concatenate(shared)) if shared else np.zeros(0, "S32")
    chosen = hold_out([whole_digest(digest) for digest in distinct], dataset.eval_fraction, seed)
    held = np.array(sorted(chosen), dtype="S32")
    evaluated = [part.held_out.digests() for part in parts if part.held_out is not None]
    for part in parts:
        part.aside = np.isin(part.digests, held)
        part.overlap = np.isin(part.digests, np.concatenate(evaluated)) if evaluated else part.aside & False
        part.used = ~part.aside
        if dataset.overlap is Copies.drop:
            part.leave_out(_IN_EVAL_SPLIT, part.overlap & ~part.aside)


def whole_digest(digest: bytes) -> bytes:
    """Give a digest the zero bytes at its end back, which numpy does not show."""
    return digest.ljust(32, b"\0")


def find_copies(parts: Sequence[Part], dataset: DatasetConfig, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Mark the rows that are copies of earlier ones, and leave them out where that is asked."""
    import numpy as np

    places = [np.flatnonzero(part.used) for part in parts]
    contents = [_row_contents(part)[wanted] for part, wanted in zip(parts, places, strict=True)]
    copy = np.ones(sum(map(len, places)), bool)
    copy[np.unique(np.concatenate(contents), return_index=True)[1]] = False
    for part, wanted, marks in zip(parts, places, _cut_like(copy, places), strict=True):
        part.duplicate = _marked(part, wanted[marks])
        if dataset.duplicates is Copies.drop:
            part.leave_out(_DUPLICATE, part.duplicate)
    if dataset.near_duplicates is not NearCopies.ignore:
        _find_near_copies(parts, dataset, tokenizer)


def _row_contents(part: Part) -> "Array":
    """Tell the rows apart that one long conversation was split into: they share its digest."""
    import numpy as np

    words = np.frombuffer(part.digests.tobytes(), dtype="<u8").reshape(-1, 4).copy()
    words[:, 0] += part.train.numbers("piece").astype("<u8")
    return np.frombuffer(words.tobytes(), dtype=part.digests.dtype)


def _cut_like(marks: "Array", places: Sequence["Array"]) -> list["Array"]:
    import numpy as np

    return np.split(marks, np.cumsum([len(wanted) for wanted in places])[:-1])


def _marked(part: Part, places: "Array") -> "Array":
    marks = part.used & False
    marks[places] = True
    return marks


def _find_near_copies(
    parts: Sequence[Part], dataset: DatasetConfig, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    import datasets
    import numpy as np

    places = [np.flatnonzero(part.used & ~part.duplicate) for part in parts]
    rows = datasets.concatenate_datasets(
        [part.train.rows.select(wanted) for part, wanted in zip(parts, places, strict=True)]
    )
    token_rows = rows.select_columns(["input_ids"]).with_format("numpy")["input_ids"]
    near = find_near_duplicates(token_rows, tokenizer, threshold=dataset.near_duplicate_threshold)
    for part, wanted, marks in zip(parts, places, _cut_like(near.found, places), strict=True):
        part.near_duplicate = _marked(part, wanted[marks])
        if dataset.near_duplicates is NearCopies.drop:
            part.leave_out(_NEAR_DUPLICATE, part.near_duplicate)


def check_left(part: Part, dataset: DatasetConfig, rules: TokenRules) -> None:
    """Refuse a source of which no row is left to train on, or none of its eval_split to score."""
    rows = dataset.mixture[part.name] if part.name else dataset
    prefix = f"dataset.mixture.{part.name}" if part.name else "dataset"
    if part.held_out is not None and not part.held_out.rows.num_rows:
        why = _why_nothing(part.held_out, rules)
        raise DataError(f"{prefix}.eval_split={rows.eval_split} leaves no row to score: {why}")
    if part.used.any():
        return
    start = f"{prefix}.path={rows.path} leaves no row to train on:"
    if not len(part.used):
        raise DataError(f"{start} {_why_nothing(part.train, rules)}")
    if part.overlap.any():
        raise DataError(
            f"{start} all are in the eval_split as well ({prefix}.eval_split={rows.eval_split}). "
            "Choose another eval_split."
        )
    copies = {_DUPLICATE: "duplicates", _NEAR_DUPLICATE: "near_duplicates"}
    found = next((cause for cause in copies if cause in part.left_out), None)
    if found:
        number = sum(int(rows.sum()) for cause, rows in part.left_out.items() if cause in copies)
        raise DataError(
            f"{start} dataset.{copies[found]}=drop leaves out all {number} that are not held out. "
            "Leave this source out, or keep copies."
        )
    helps = "Add rows, or set dataset.eval_fraction=0."
    if part.train.report["dropped"]:
        helps = f"The others cannot be used: {_why_nothing(part.train, rules)}"
    raise DataError(
        f"{start} dataset.eval_fraction={dataset.eval_fraction:g} holds out all of its distinct rows. {helps}"
    )


def _why_nothing(stored: StoredTokens, rules: TokenRules) -> str:
    """Say why no row of a split could be used, and what helps."""
    dropped = stored.report["dropped"]
    causes = "; ".join(f"{number} x {cause}" for cause, number in dropped.items())
    hint = "Leave dataset.on_bad_row out to see the first of them whole."
    if any("trainer.max_length" in cause for cause in dropped):
        hint = f"Mend the rows, or raise trainer.max_length={rules.max_length}."
    return f"{causes}. {hint}"
