"""The `dataset` section: where rows come from and what is learned from them."""

from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path


class DataSource(StrEnum):
    """Where the rows live."""

    hub = "hub"
    local = "local"
    package = "package"


class LossTarget(StrEnum):
    """Which words of a conversation are learned."""

    assistant = "assistant"
    last_turn = "last_turn"
    all = "all"


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """The rows to train on."""

    source: DataSource = DataSource.local
    """hub (Hugging Face hub id), local (file or folder) or package (an installed Python package)."""
    path: str = ""
    """Hub id, file (.jsonl .json .csv .parquet), folder of such files, or package name."""
    config: str | None = None
    """Configuration (subset) of the hub data set."""
    split: str = "train"
    """Training split; slices as on the hub: "train[:5%]" (quote it for the shell)."""
    eval_split: str | None = None
    """Split to hold out; none: a share of the training rows is held out instead."""
    eval_fraction: float = 0.05
    """Share of the rows held out where there is no eval_split; 0 holds out nothing."""
    max_eval_rows: int | None = 500
    """Most held-out rows that are evaluated; those beyond it are still not trained on."""
    revision: str | None = None
    """Branch, tag or commit of the hub data set."""
    max_rows: int | None = None
    """Use only this many rows, from the start."""
    loss_on: LossTarget = LossTarget.assistant
    """Learn every assistant turn, the last_turn only, or all tokens. Plain text is always learned whole."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = self._path_problems()
        if self.eval_split is not None and self.eval_split == self.split:
            found.append(
                f"dataset.eval_split={self.eval_split} is the training split itself. "
                "Name another one, or leave it out to hold out a share."
            )
        if not self.path.strip():
            found.append("dataset.path= is empty. Name your file, e.g. dataset=local dataset.path=my.jsonl.")
        if not 0 <= self.eval_fraction < 1:
            found.append(
                f"dataset.eval_fraction={self.eval_fraction} must be at least 0 and below 1. Use 0.05."
            )
        for key in ("max_rows", "max_eval_rows"):
            value = getattr(self, key)
            if value is not None and value < 1:
                found.append(f"dataset.{key}={value} must be at least 1. Leave it out to use every row.")
        return found

    def _path_problems(self) -> list[str]:
        path = Path(self.path).expanduser()
        if self.source is not DataSource.local or not self.path.strip() or path.exists():
            return []
        near = get_close_matches(path.name, _names_in(path.parent), 1)
        if near:
            hint = f"Did you mean {Path(self.path).parent / near[0]}?"
        elif self.path.count("/") == 1 and not path.suffix:
            hint = "For a hub id add dataset.source=hub."
        else:
            hint = f"Check the path; relative ones start at {Path.cwd()}."
        return [f"dataset.path={self.path} does not exist. {hint}"]


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
