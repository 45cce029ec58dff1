"""The tokens of a split on disk: made once, and found again by a key of everything that they follow from."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.cache import one_at_a_time, room_for, writable_cache
from gemma_ft.data.holdout import DIGEST_BYTES
from gemma_ft.data.sources.opening import identify_split
from gemma_ft.data.tokenise import COLUMNS, TokenJob, tokenise
from gemma_ft.errors import DataError

if TYPE_CHECKING:
    import datasets
    import numpy

_ROWS, _DROPPED, _REPORT = "rows.arrow", "dropped.jsonl", "report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTokens:
    """The tokenised rows of one split, read from disk as they are asked for."""

    key: str
    rows: "datasets.Dataset"
    """One entry a row: input_ids, labels, and what `tokenise.COLUMNS` names beside them."""
    report: dict[str, Any]
    """What `tokenise` counted."""
    dropped: Path
    """JSON Lines of the rows that were left out: where, cause, message."""

    def numbers(self, column: str) -> "numpy.ndarray[Any, Any]":
        """Read a column of whole numbers."""
        import numpy as np

        chunks = [chunk.to_numpy() for chunk in self.rows.data.column(column).chunks]
        return np.concatenate(chunks) if chunks else np.zeros(0, np.int32)

    def digests(self) -> "numpy.ndarray[Any, Any]":
        """Read the content digest of each row, of numpy's type S32."""
        import numpy as np

        chunks = [
            np.frombuffer(b"".join(chunk.to_pylist()), dtype=f"S{DIGEST_BYTES}")
            for chunk in self.rows.data.column("digest").chunks
        ]
        return np.concatenate(chunks) if chunks else np.zeros(0, f"S{DIGEST_BYTES}")


def load_tokens(job: TokenJob) -> StoredTokens:
    """Return the tokens of a split, made now or by an earlier run or another process.

    Raises:
        DataError: A row or file cannot be used, or the disk is full.
        HubError: The hub is needed and does not give the rows.
    """
    facts = _facts(job)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()[:32]
    folder = writable_cache("tokens") / key
    with one_at_a_time(folder.with_suffix(".lock"), "tokenising the same rows"):
        stored = _open(folder, key)
        if stored is None:
            _build(folder, job)
            stored = _open(folder, key)
    if stored is None:
        raise DataError(f"{folder} cannot be read back. Look whether its disk is sound, then try again.")
    return stored


def _facts(job: TokenJob) -> dict[str, Any]:
    """Name everything that the tokens follow from, our own code included."""
    import tokenizers

    return {
        "code": _code_sha256(),
        "tokenizers": tokenizers.__version__,
        "tokenizer": job.tokenizer_sha256,
        "template": job.tokenizer.chat_template,
        "rules": asdict(job.rules),
        "control_tokens": job.dataset.control_tokens,
        "on_bad_row": job.dataset.on_bad_row,
        "path": job.rows.path,
        "columns": asdict(job.rows.columns),
        "split": [job.split, job.most],
        "identity": identify_split(job.source, job.split, name=job.rows.path, key=job.key),
    }


@cache
def _code_sha256() -> str:
    """Hash the modules that turn rows into tokens, so that a change of theirs makes a new key."""
    package = Path(__file__).parent.parent
    files = [
        *sorted((package / "data").rglob("*.py")),
        package / "families.py",
        package / "chat_template.jinja",
    ]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _build(folder: Path, job: TokenJob) -> None:
    """Tokenise into a folder beside, and give it its name when it is whole."""
    for abandoned in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with room_for("the tokens", folder.parent):
            report = tokenise(job, rows_file=beside / _ROWS, dropped_file=beside / _DROPPED)
            (beside / _REPORT).write_text(json.dumps(report), encoding="utf-8")
            for file in beside.iterdir():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
            shutil.rmtree(folder, ignore_errors=True)  # one that could not be read
            os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _open(folder: Path, key: str) -> StoredTokens | None:
    """Open a folder of tokens, or return None where there is none or it is damaged."""
    import datasets
    import pyarrow

    try:
        report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        rows = datasets.Dataset.from_file(str(folder / _ROWS))
        whole = rows.num_rows == report["rows"] and rows.column_names == list(COLUMNS)
        whole = whole and (folder / _DROPPED).is_file() and "contract" in report
    except (OSError, LookupError, TypeError, ValueError, pyarrow.ArrowException):
        return None
    if not whole:
        return None
    rows._fingerprint = key
    return StoredTokens(key=key, rows=rows, report=report, dropped=folder / _DROPPED)
