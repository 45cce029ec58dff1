"""The `dataset` section: which rows are used and what is learned from them."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from gemma_ft.config.rows import ColumnsConfig, DataSource, MixturePart, RowsConfig


class LossTarget(StrEnum):
    """Which words of a conversation are learned."""

    assistant = "assistant"
    last_turn = "last_turn"
    all = "all"


class Trim(StrEnum):
    """What is cut from the ends of an assistant's answer."""

    keep_indent = "keep_indent"
    template = "template"


class OnBadRow(StrEnum):
    """What a row that cannot be used does."""

    error = "error"
    drop = "drop"


class OnLongRow(StrEnum):
    """What becomes of a row that is longer than trainer.max_length."""

    truncate = "truncate"
    drop = "drop"
    split = "split"  # type: ignore[assignment]


class ControlTokens(StrEnum):
    """What becomes of a control token that stands in a text."""

    escape = "escape"
    refuse = "refuse"


class Copies(StrEnum):
    """What becomes of a row that stands somewhere else as well."""

    keep = "keep"
    drop = "drop"


class NearCopies(StrEnum):
    """What becomes of a row that is almost another one."""

    ignore = "ignore"
    report = "report"
    drop = "drop"


class MixtureWeights(StrEnum):
    """What the weights of a mixture are shares of."""

    tokens = "tokens"
    rows = "rows"


class StoppingStrategy(StrEnum):
    """How long a mixture is, in the words of the datasets library."""

    first_exhausted = "first_exhausted"
    all_exhausted = "all_exhausted"


_OF_ONE_SOURCE = ("source", "path", "config", "eval_split", "revision", "max_rows", "streaming", "split")


@dataclass(kw_only=True, slots=True)
class DatasetConfig(RowsConfig):
    """The rows to train on."""

    mixture: dict[str, MixturePart] = field(default_factory=dict)
    """Several sources by name (dataset=mixture): each takes source, path, ... as above, and its weight."""
    mixture_weights: MixtureWeights = MixtureWeights.tokens
    """What the weights of a mixture are shares of: the tokens that are trained through, or the rows."""
    stopping_strategy: StoppingStrategy = StoppingStrategy.first_exhausted
    """A mixture ends with its first exhausted part, no row twice, or repeats parts until all_exhausted."""
    eval_fraction: float = 0.05
    """Share of the rows held out where there is no eval_split; 0 holds out nothing."""
    max_eval_rows: int | None = 500
    """Most held-out rows that are evaluated; those beyond it are still not trained on."""
    loss_on: LossTarget = LossTarget.assistant
    """Learn every assistant turn, the last_turn only, or all tokens. Plain text is always learned whole."""
    trim: Trim = Trim.keep_indent
    """Keep the spaces and tabs that an answer begins with (code), or trim them as Gemma's template does."""
    control_tokens: ControlTokens = ControlTokens.escape
    """Control tokens typed inside a text: escape them into ordinary text, or refuse the row."""
    on_bad_row: OnBadRow = OnBadRow.error
    """A row that cannot be used stops the run, or is dropped, counted and listed in dropped.jsonl."""
    on_long_row: OnLongRow = OnLongRow.truncate
    """A row beyond trainer.max_length: truncate it, drop it, or split it between its turns."""
    duplicates: Copies = Copies.keep
    """Exact copies among the training rows: counted, and kept or dropped but for the first."""
    overlap: Copies = Copies.drop
    """Training rows that stand in eval_split as well: counted, and dropped or kept."""
    near_duplicates: NearCopies = NearCopies.ignore
    """Look for training rows that are almost alike (MinHash; needs rensa): report or drop them."""
    near_duplicate_threshold: float = 0.8
    """Jaccard similarity of token 5-grams from which two rows, and their answers, are almost alike."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = self._mixture_problems() if self.mixture else self.row_problems("dataset")
        if not 0 <= self.eval_fraction < 1:
            found.append(
                f"dataset.eval_fraction={self.eval_fraction} must be at least 0 and below 1. Use 0.05."
            )
        if self.max_eval_rows is not None and not 1 <= self.max_eval_rows < 2**63:
            found.append(
                f"dataset.max_eval_rows={self.max_eval_rows} must be at least 1. "
                "Leave it out to use every row."
            )
        if not 0 < self.near_duplicate_threshold <= 1:
            found.append(
                f"dataset.near_duplicate_threshold={self.near_duplicate_threshold} must be above 0 and at "
                "most 1. Use 0.8."
            )
        return found

    def _mixture_problems(self) -> list[str]:
        found = [
            f"dataset.{key}={getattr(self, key)} would be ignored beside dataset.mixture. "
            "Put it into the mixture's parts (dataset=mixture starts empty)."
            for key in _OF_ONE_SOURCE
            if getattr(self, key) not in (None, "", False, "train", DataSource.local)
        ]
        if self.columns != ColumnsConfig():
            found.append("dataset.columns would be ignored beside dataset.mixture. Name them in its parts.")
        for name, part in self.mixture.items():
            prefix = f"dataset.mixture.{name}"
            found += part.row_problems(prefix) + part.columns.problems(f"{prefix}.columns")
            if not 0 < part.weight < math.inf:
                found.append(f"{prefix}.weight={part.weight} must be above 0 and finite. Use e.g. 0.5.")
        return found


def row_parts(dataset: DatasetConfig) -> dict[str, RowsConfig]:
    """Return every source of the rows by the prefix of its keys; a mixture has several."""
    if not dataset.mixture:
        return {"dataset": dataset}
    return {f"dataset.mixture.{name}": part for name, part in dataset.mixture.items()}
