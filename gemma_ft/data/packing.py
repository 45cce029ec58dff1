"""Fill sequences with several whole rows, so that little is computed for nothing."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.cache import one_at_a_time, room_for
from gemma_ft.data.sources.hub_rows import quiet_datasets

if TYPE_CHECKING:
    import datasets

TOKEN_COLUMNS = ("input_ids", "labels")
"""What a trainer reads of a row."""


def pack(rows: "datasets.Dataset", max_length: int, folder: Path) -> "datasets.Dataset":
    """Pack rows with TRL's best-fit-decreasing strategy, which leaves every row whole.

    Args:
        rows: Rows of at most `max_length` tokens.
        max_length: Tokens of a sequence.
        folder: Where packed sequences are kept, under a key of the rows and their order.

    Returns:
        Columns input_ids, labels and seq_lengths, the lengths of the rows in each sequence.

    Raises:
        DataError: The disk is full.
    """
    import pyarrow
    import trl

    key = hashlib.sha256(f"{rows._fingerprint} {max_length} {trl.__version__}".encode()).hexdigest()[:32]
    file = folder / f"packed-{key}.arrow"
    turn = one_at_a_time(file.with_suffix(".lock"), "packing the same rows")
    with room_for("the packed sequences", folder), turn, quiet_datasets():
        try:
            return _pack(rows, max_length, file, key)
        except pyarrow.ArrowInvalid:  # a file that a crash of the machine left torn
            file.unlink()
            return _pack(rows, max_length, file, key)


def _pack(rows: "datasets.Dataset", max_length: int, file: Path, key: str) -> "datasets.Dataset":
    import trl

    packed: datasets.Dataset = trl.pack_dataset(
        rows.select_columns(list(TOKEN_COLUMNS)),
        max_length,
        strategy="bfd",
        map_kwargs={"cache_file_name": str(file), "new_fingerprint": key},
    )
    return packed


def describe_packing(packed: "datasets.Dataset", tokens: int, max_length: int) -> dict[str, Any]:
    """Say how well the sequences are filled.

    Args:
        packed: The sequences.
        tokens: Tokens in all of them.
        max_length: Tokens that a sequence could hold.
    """
    return {"sequences": packed.num_rows, "efficiency": tokens / (packed.num_rows * max_length)}
