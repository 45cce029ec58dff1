"""From the rows of a split to a file of tokens, batch by batch, with every row accounted for."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.dataset import ControlTokens, DatasetConfig, OnBadRow
from gemma_ft.config.rows import RowsConfig
from gemma_ft.data.account import Account
from gemma_ft.data.conversations.examples import Conversation, Example, Text, build_example
from gemma_ft.data.conversations.shapes import unused_columns
from gemma_ft.data.holdout import content_digest
from gemma_ft.data.sources.opening import load_split
from gemma_ft.data.sources.rows import Row, RowError, Source
from gemma_ft.data.tokens.contract import check_rows, describe_contract
from gemma_ft.data.tokens.encoding import Encoded, TokenRules, encode_batch, find_control_token

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerFast

COLUMNS = (
    "input_ids",
    "labels",
    "where",
    "length",
    "full_length",
    "trained",
    "turns",
    "turns_cut",
    "piece",
    "digest",
)
"""What is kept of each row; `piece` counts the rows that one long conversation was split into, from 0."""

_LIMIT = "trainer.max_length"
_TOO_LONG = f"longer than {_LIMIT}"
_UNLEARNED = f"no learned token within {_LIMIT}"
_BATCH_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenJob:
    """A split that is to become tokens, and everything that says how."""

    source: Source
    """The opened source."""
    rows: RowsConfig
    """Its keys."""
    split: str
    """A split or slice of it."""
    key: str
    """The key that names the split, for messages."""
    most: int | None
    """Read no more rows than this."""
    dataset: DatasetConfig
    """The keys of the whole data set."""
    tokenizer: "PreTrainedTokenizerFast"
    """One that `check_tokenizer` let pass."""
    tokenizer_sha256: str
    """Hash of everything that the tokenizer does."""
    rules: TokenRules


def tokenise(job: TokenJob, *, rows_file: Path, dropped_file: Path) -> dict[str, Any]:
    """Read a split and write its tokens; memory does not grow with the number of rows.

    Args:
        job: What becomes tokens, and how.
        rows_file: Arrow stream to write.
        dropped_file: JSON Lines to write.

    Returns:
        Counts and hashes of what was read.

    Raises:
        DataError: A row or file cannot be used.
        HubError: The hub is needed and does not give the rows.
    """
    import pyarrow

    with dropped_file.open("w", encoding="utf-8") as dropped:
        account = Account(dropped)
        reader = _Reader(job, account)
        with pyarrow.OSFile(str(rows_file), "wb") as sink, pyarrow.ipc.new_stream(sink, _schema()) as writer:
            written = 0
            while batch := list(islice(reader, _BATCH_ROWS)):
                if account.contract is None:
                    account.contract = _contract(batch, job)
                table = _encode(batch, job, account)
                check_rows(table, job.tokenizer)
                writer.write_batch(table)
                written += table.num_rows
                account.tell()
    return account.report() | {"rows": written, "tokenizer_sha256": job.tokenizer_sha256}


class _Reader(Iterator[tuple[str, Example, bytes]]):
    """Yields place, example and digest of each row that can be used."""

    def __init__(self, job: TokenJob, account: Account) -> None:
        found = load_split(job.source, job.split, name=job.rows.path, key=job.key)
        self._rows = islice(found, job.most)
        self._columns = job.rows.columns
        self._prefix = job.key.rpartition(".")[0]
        self._refused = job.tokenizer if job.dataset.control_tokens is ControlTokens.refuse else None
        self._drops = job.dataset.on_bad_row is OnBadRow.drop
        self._account = account

    def __next__(self) -> tuple[str, Example, bytes]:
        for row in self._rows:
            self._account.read += 1
            try:
                example = self._example(row)
            except RowError as error:
                if not self._drops:
                    raise
                self._account.drop(error.where, error.cause, str(error))
                continue
            assert isinstance(row, Row)
            if self._account.unused is None:
                self._account.unused = unused_columns(row, self._columns, self._prefix)
            digest = content_digest(example)
            self._account.hash.update(digest)
            self._account.examples += 1
            self._account.plain_text += isinstance(example, Text)
            self._account.system += isinstance(example, Conversation) and bool(example.system)
            return row.where, example, digest
        raise StopIteration

    def _example(self, row: Row | RowError) -> Example:
        if isinstance(row, RowError):
            raise row
        example = build_example(row, self._columns, self._prefix)
        token = find_control_token(example, self._refused) if self._refused is not None else None
        if token is not None:
            hint = f"Take {token} out, or set dataset.control_tokens=escape."
            raise RowError(row.where, "a control token is typed in a text", hint)
        return example


_Batch = list[tuple[str, Example, bytes]]
"""Place, example and digest of some rows."""


def _contract(batch: _Batch, job: TokenJob) -> dict[str, Any]:
    return describe_contract(job.tokenizer, job.rules, [(where, example) for where, example, _ in batch])


def _encode(batch: _Batch, job: TokenJob, account: Account) -> "pyarrow.RecordBatch":
    kept: list[tuple[str, Encoded, int, bytes]] = []
    encoded = encode_batch([example for _, example, _ in batch], job.tokenizer, job.rules)
    for (where, _, digest), pieces in zip(batch, encoded, strict=True):
        if not pieces:
            account.drop(where, _TOO_LONG, _line(where, _TOO_LONG, job.rules))
        for number, piece in enumerate(pieces):
            if piece.trained:
                kept.append((where, piece, number, digest))
            else:
                account.drop(where, _UNLEARNED, _line(where, _UNLEARNED, job.rules))
    return _record_batch(kept)


def _line(where: str, cause: str, rules: TokenRules) -> str:
    return f"{where}: {cause.replace(_LIMIT, f'{_LIMIT}={rules.max_length}')}. Raise it to use the row."


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    kinds = {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())}
    kinds |= {"where": pa.string(), "digest": pa.binary()}
    return pa.schema([(name, kinds.get(name, pa.int32())) for name in COLUMNS])


def _record_batch(rows: list[tuple[str, Encoded, int, bytes]]) -> "pyarrow.RecordBatch":
    import numpy as np
    import pyarrow as pa

    pieces = [piece for _, piece, _, _ in rows]
    offsets = np.cumsum([0, *(len(piece.input_ids) for piece in pieces)], dtype=np.int32)
    flat = {
        name: np.concatenate([getattr(piece, name) for piece in pieces]) if pieces else np.zeros(0, np.int32)
        for name in ("input_ids", "labels")
    }
    columns = {name: pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat[name])) for name in flat}
    columns["length"] = pa.array(np.diff(offsets), pa.int32())
    columns["where"] = pa.array([where for where, _, _, _ in rows], pa.string())
    for name in ("full_length", "trained", "turns", "turns_cut"):
        columns[name] = pa.array([getattr(piece, name) for piece in pieces], pa.int32())
    columns["piece"] = pa.array([number for _, _, number, _ in rows], pa.int32())
    columns["digest"] = pa.array([digest for _, _, _, digest in rows], pa.binary())
    return pa.RecordBatch.from_arrays([columns[name] for name in COLUMNS], schema=_schema())
