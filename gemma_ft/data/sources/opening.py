"""Where rows come from: the hub, local files, installed packages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ft.config.rows import DataSource, RowsConfig
from gemma_ft.data.sources.files import LocalFiles
from gemma_ft.data.sources.hub_rows import HubRows
from gemma_ft.data.sources.hub_stream import StreamedRows
from gemma_ft.data.sources.packages import open_package
from gemma_ft.data.sources.rows import Row, RowError, Source, SplitPart, parse_split
from gemma_ft.errors import DataError

__all__ = ["Row", "RowError", "Source", "identify_split", "load_split", "open_source"]


def open_source(rows: RowsConfig, prefix: str = "dataset") -> Source:
    """Find the data set that a configuration names; a hub id that is a local path is read locally.

    Args:
        rows: Which data set.
        prefix: The prefix of its keys, for messages.

    Raises:
        DataError: There is none, or it cannot be read.
        HubError: The hub is needed and does not give it.
    """
    if rows.source is DataSource.package:
        return open_package(rows.path, prefix)
    if rows.source is DataSource.local or _exists_here(rows.path):
        return LocalFiles(rows.path, prefix)
    hub_rows = StreamedRows if rows.streaming else HubRows
    return hub_rows(rows.path, config=rows.config, revision=rows.revision, prefix=prefix)


def _exists_here(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name that no file can have, the home of nobody
        return False


def load_split(source: Source, split: str, *, name: str, key: str) -> Iterator[Row | RowError]:
    """Read the rows of a split of an opened source.

    Args:
        source: The opened source.
        split: A split or slice.
        name: What the user calls the data set, for messages.
        key: The configuration key that holds the split, for messages.

    Yields:
        Each row in the order of the source, or the fault of a row in its place.

    Raises:
        DataError: The split is missing or has no row, or nothing more of it can be read.
        HubError: The connection to the hub is lost.
    """
    empty = True
    for part in _parts(source, split, name, key):
        start, stop = part.bounds(lambda part=part: source.count(part.name))  # type: ignore[misc]
        for row in source.rows(part.name, start, stop):
            empty = False
            yield row
    if empty:
        prefix = key.rpartition(".")[0]
        raise DataError(f"{prefix}.path={name} has no row in {key}={split}. Check the file and the split.")


def identify_split(source: Source, split: str, *, name: str, key: str) -> dict[str, Any]:
    """Tell what exactly the rows of a split expression are, in what JSON can hold.

    The arguments and errors are those of `load_split`; nothing but bytes and names is read.
    """
    parts = _parts(source, split, name, key)
    return {
        "split": split,
        "rows": {part: source.identity(part) for part in sorted({part.name for part in parts})},
    }


def _parts(source: Source, split: str, name: str, key: str) -> tuple[SplitPart, ...]:
    parts = parse_split(split, key)
    if any(part.name not in source.splits for part in parts):
        raise DataError(f"{key}={split} is not in {name}, which has: {', '.join(source.splits)}. Choose one.")
    return parts
