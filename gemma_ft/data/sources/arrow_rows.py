"""Rows of Arrow batches, and of the Parquet files that hold them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.data.sources.foreign import HEAD_BYTES, refuse_foreign
from gemma_ft.data.sources.rows import Row, RowError, one_line, show
from gemma_ft.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 512
"""Rows that are held as Python objects at once."""

_BUFFER_BYTES = 1 << 20


def arrow_rows(batch: "pyarrow.RecordBatch", name: str, before: int) -> Iterator[Row | RowError]:
    """Read the rows of a batch.

    Args:
        batch: A batch, or a table.
        name: Where it comes from; rows are numbered behind it.
        before: How many rows came before.
    """
    numbers = range(before + 1, before + 1 + batch.num_rows)
    try:
        rows = batch.to_pylist()
    except Exception:  # Arrow holds more than Python: years beyond 9999, unknown time zones, bytes as text
        for place, number in enumerate(numbers):
            yield _one_row(batch, place, f"{name}:{number}")
        return
    yield from (Row(f"{name}:{number}", values) for number, values in zip(numbers, rows, strict=True))


def _one_row(batch: "pyarrow.RecordBatch", place: int, where: str) -> Row:
    """Read one row; a value that cannot be read is its fault, which counts only where the value is used."""
    values: dict[str, Any] = {}
    for column, cells in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[column] = cells[place].as_py()
        except Exception as error:
            cause = "bad UTF-8" if isinstance(error, UnicodeDecodeError) else "a value that cannot be read"
            detail = f"in column {show(column)} ({one_line(error)})"
            values[column] = RowError(where, cause, "Correct the value, or remove the row.", detail=detail)
    return Row(where, values)


def parquet_rows(file: Path, name: str) -> Iterator[Row | RowError]:
    """Read the rows of a Parquet file, page by page.

    Raises:
        DataError: It is none, or broken.
        OSError: It cannot be opened.
    """
    from pyarrow import parquet

    number = 0
    with file.open("rb") as content:
        refuse_foreign(file.suffix, content.peek(HEAD_BYTES)[:HEAD_BYTES], name)
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as table:
            _check_columns(table.schema_arrow.names, name)
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                yield from arrow_rows(batch, name, number)
                number += batch.num_rows
    except DataError:
        raise
    except Exception as error:  # a torn file can fail in any way that its bytes lead to
        raise _unreadable(f"{name}:{number + 1}" if number else name, error) from None


def count_parquet_rows(file: Path, name: str) -> int:
    """Count the rows of a Parquet file by its footer.

    Raises:
        DataError: It has none.
    """
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(file).num_rows)
    except Exception as error:
        raise _unreadable(name, error) from None


def _unreadable(place: str, error: Exception) -> DataError:
    return DataError(f"{place}: no Parquet that can be read ({one_line(error)}). Write it again.")


def _check_columns(columns: list[str], name: str) -> None:
    twice = [column for place, column in enumerate(columns) if column in columns[:place]]
    if twice:
        raise DataError(f"{name}: two columns are named {show(twice[0])}. Rename one.")
    if not columns:
        raise DataError(f"{name}: no columns. Write it again.")
