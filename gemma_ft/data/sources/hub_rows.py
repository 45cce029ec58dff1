"""Rows of a data set on the hub, downloaded whole."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemma_ft import hub
from gemma_ft.data.sources.arrow_rows import BATCH_ROWS, arrow_rows
from gemma_ft.data.sources.rows import Row, RowError, one_line
from gemma_ft.errors import DataError, GemmaFTError


class HubRows:
    """A data set of the hub, or its copy in the cache where the hub cannot be reached.

    Args:
        path: Hub id.
        config: Configuration of the data set.
        revision: Branch, tag or commit; none means the main branch.
        prefix: The prefix of the keys that name it, for messages.

    Raises:
        DataError: It has no such configuration, or cannot be read.
        HubError: The hub is needed and does not give it.
    """

    def __init__(self, path: str, *, config: str | None, revision: str | None, prefix: str) -> None:
        self._path, self._config = path, config
        key = f"{prefix}.path"
        answer = hub.ask(path, revision=revision, repo_type="dataset", name="README.md")
        try:
            with quiet_datasets(), hub.cached_datasets_only(answer):
                self._builder = _prepare(path, config, revision or answer.commit)
        except GemmaFTError:
            raise
        except Exception as error:
            raise explain_failure(answer.failure or error, error, path, config, prefix) from None
        hub.tell_cached(answer, key=key, repo=path)
        self.revision = answer.commit or str(self._builder.hash)
        if answer.commit is None and not _is_asked_for(path, revision, self.revision):
            raise hub.explain(
                answer.failure or LookupError(f"revision {revision} is not cached"),
                key=key,
                repo=path,
                repo_type="dataset",
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Name the splits of the data set."""
        return tuple(self._builder.info.splits or ())

    def count(self, split: str) -> int:
        """Count the rows of a split."""
        return int(self._builder.info.splits[split].num_examples)

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row | RowError]:
        """Read the rows of a split from start up to, not including, stop (counted from 0)."""
        total = self.count(split)
        with quiet_datasets():
            chosen = self._builder.as_dataset(split=split).select(
                range(min(start, total), total if stop is None else min(stop, total))
            )
        # As Arrow: columns that hold images or sounds are not decoded.
        for batch in chosen.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from arrow_rows(batch, f"{self._path}[{split}]", start)
            start += batch.num_rows

    def identity(self, split: str) -> dict[str, Any]:
        """Name the commit that the rows come from."""
        return {"repo": self._path, "config": self._config, "commit": self.revision}


def _prepare(path: str, config: str | None, revision: str | None) -> Any:
    import datasets

    builder = datasets.load_dataset_builder(path, name=config, revision=revision)
    builder.download_and_prepare()
    return builder


def explain_failure(
    reason: Exception, error: Exception, path: str, config: str | None, prefix: str
) -> GemmaFTError:
    """Say in one line why the datasets library could not give a data set.

    Args:
        reason: What stands in the way of the hub, if something does.
        error: What the library raised.
        path: Hub id.
        config: The configuration that was asked for.
        prefix: The prefix of the keys that name it.
    """
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error
    if isinstance(error, ValueError) and "onfig" in str(cause):
        return DataError(f"{prefix}.config={config} does not fit {path}: {one_line(cause)}.")
    if isinstance(error, DatasetGenerationError):
        return DataError(
            f"{prefix}.path={path} cannot be read: {one_line(cause)}. Try another {prefix}.revision."
        )
    return hub.explain(reason, key=f"{prefix}.path", repo=path, repo_type="dataset")


def _is_asked_for(path: str, revision: str | None, commit: str) -> bool:
    """Tell whether the cached copy is of the revision; the datasets library takes any that it finds."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision is None or revision == commit:
        return True
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="dataset")
    reference = folder / "refs" / revision
    return reference.is_file() and reference.read_text(encoding="utf-8").strip() == commit


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep bars and remarks on caches and cards off the screen: what matters of them is raised."""
    import datasets

    card = logging.getLogger("huggingface_hub.repocard")
    bars, level = datasets.is_progress_bar_enabled(), datasets.utils.logging.get_verbosity()
    card_level = card.level
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    card.setLevel(logging.ERROR)
    try:
        yield
    finally:
        card.setLevel(card_level)
        datasets.utils.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
