"""Where rows come from: the hub, local files, installed packages."""

from collections.abc import Iterator
from pathlib import Path

from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.rows import DataSource
from gemma_ft.data.files import LocalFiles
from gemma_ft.data.hub_rows import HubRows
from gemma_ft.data.packages import PackageRows
from gemma_ft.data.rows import Row, Source, parse_split
from gemma_ft.errors import DataError

__all__ = ["Row", "Source", "load_rows", "load_split", "open_source"]


def open_source(dataset: DatasetConfig) -> Source:
    """Find the data set that a configuration names; a hub id that is a local path is read locally.

    Raises:
        DataError: There is none, or it cannot be read.
        HubError: The hub is needed and does not give it.
    """
    if dataset.source is DataSource.package:
        return PackageRows(dataset.path)
    if dataset.source is DataSource.local or Path(dataset.path).expanduser().exists():
        return LocalFiles(dataset.path)
    return HubRows(dataset.path, config=dataset.config, revision=dataset.revision)


def load_rows(dataset: DatasetConfig, split: str) -> Iterator[Row]:
    """Read the rows of a split, in the order of the source.

    Args:
        dataset: Which data set.
        split: A split or slice, as `dataset.split` takes it.

    Raises:
        DataError: A file, line or split is missing or unreadable, or there is no row.
        HubError: The hub is needed and does not give it.
    """
    key = "dataset.eval_split" if split == dataset.eval_split and split != dataset.split else "dataset.split"
    return load_split(open_source(dataset), split, name=dataset.path, key=key)


def load_split(source: Source, split: str, *, name: str, key: str) -> Iterator[Row]:
    """Read the rows of a split of an opened source.

    Args:
        source: The opened source.
        split: A split or slice.
        name: What the user calls the data set, for messages.
        key: The configuration key that holds the split, for messages.

    Raises:
        DataError: The split or a row is missing or unreadable.
    """
    empty = True
    for part in parse_split(split, key):
        if part.name not in source.splits:
            raise DataError(
                f"{key}={split} is not in {name}, which has: {', '.join(source.splits)}. Choose one."
            )
        start, stop = part.bounds(lambda part=part: source.count(part.name))  # type: ignore[misc]
        for row in source.rows(part.name, start, stop):
            empty = False
            yield row
    if empty:
        raise DataError(f"dataset.path={name} has no row in {key}={split}. Check the file and the split.")
