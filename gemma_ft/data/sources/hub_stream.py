"""Rows of a data set on the hub, read as they arrive."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gemma_ft import hub
from gemma_ft.data.sources.arrow_rows import BATCH_ROWS, arrow_rows
from gemma_ft.data.sources.hub_rows import explain_failure, quiet_datasets
from gemma_ft.data.sources.rows import Row, RowError, one_line
from gemma_ft.errors import DataError, GemmaFTError, HubError

_RETRIES = 4


class StreamedRows:
    """A data set of the hub of which nothing is kept on disk.

    Args:
        path: Hub id.
        config: Configuration of the data set.
        revision: Branch, tag or commit; none means the main branch.
        prefix: The prefix of the keys that name it, for messages.

    Raises:
        DataError: It has no such configuration, or cannot be read.
        HubError: The hub does not give it.
    """

    def __init__(self, path: str, *, config: str | None, revision: str | None, prefix: str) -> None:
        import datasets

        self._path, self._config, self._prefix = path, config, prefix
        answer = hub.ask(path, revision=revision, repo_type="dataset", name="README.md")
        if answer.commit is None:
            reason = answer.failure or LookupError("no commit is told")
            raise hub.explain(reason, key=f"{prefix}.path", repo=path, repo_type="dataset")
        self.revision = answer.commit
        try:
            with quiet_datasets():
                self._splits = datasets.load_dataset(
                    path, name=config, revision=answer.commit, streaming=True
                )
        except Exception as error:
            raise explain_failure(error, error, path, config, prefix) from None

    @property
    def splits(self) -> tuple[str, ...]:
        """Name the splits of the data set."""
        return tuple(self._splits)

    def count(self, split: str) -> int:
        """Tell how many rows the data set's card says that a split has.

        Raises:
            DataError: It does not say.
        """
        told = (self._splits[split].info.splits or {}).get(split)
        if told is None or not told.num_examples:
            raise DataError(
                f"{self._prefix}.streaming=true cannot slice {self._path}[{split}] in percent or from "
                f"the end: its card does not say how many there are. Slice by row, e.g. {split}[:1000]."
            )
        return int(told.num_examples)

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0)."""
        # As Arrow: columns that hold images or sounds are not decoded.
        stream = self._splits[split].with_format("arrow").skip(start)
        if stop is not None:
            stream = stream.take(max(stop - start, 0))
        batches = stream.iter(batch_size=BATCH_ROWS)
        while True:
            try:
                with _fewer_retries():
                    batch = next(batches, None)
            except Exception as error:
                raise self._interrupted(error, f"{self._path}[{split}] after row {start}") from None
            if batch is None:
                return
            yield from arrow_rows(batch, f"{self._path}[{split}]", start)
            start += batch.num_rows

    def identity(self, split: str) -> dict[str, Any]:
        """Name the commit that the rows come from."""
        return {"repo": self._path, "config": self._config, "commit": self.revision}

    def _interrupted(self, error: Exception, where: str) -> GemmaFTError:
        import pyarrow
        from datasets.exceptions import DatasetsError

        cause = one_line(error.__cause__ or error)
        if isinstance(error, (DatasetsError, pyarrow.ArrowException, UnicodeDecodeError)):
            hint = f"Try another {self._prefix}.revision."
            return DataError(f"{where}: cannot be read ({cause}). {hint}")
        if getattr(error, "response", None) is not None:
            return hub.explain(error, key=f"{self._prefix}.path", repo=self._path, repo_type="dataset")
        return HubError(
            f"{where}: the connection to the hub is lost ({cause}). Start again, or leave out "
            f"{self._prefix}.streaming: a download goes on where it stopped."
        )


@contextmanager
def _fewer_retries() -> Iterator[None]:
    """Give a lost connection up after about two minutes.

    The datasets library tries 20 times what huggingface_hub has tried for half a minute each; there is no
    argument for it, and the number is read when a file is opened.
    """
    import datasets

    before = datasets.config.STREAMING_READ_MAX_RETRIES
    datasets.config.STREAMING_READ_MAX_RETRIES = _RETRIES
    try:
        yield
    finally:
        datasets.config.STREAMING_READ_MAX_RETRIES = before
