"""Where rows come from: the keys of one source, alone or as part of a mixture."""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import combinations

from gemma_ft.config.places import find_place_problems, find_split_problems


class DataSource(StrEnum):
    """Where the rows live."""

    hub = "hub"
    local = "local"
    package = "package"


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    """Your names for what the shapes of rows are made of; a column that is not named here keeps its own."""

    messages: str | None = None
    """Column of the list of turns (otherwise messages, or ShareGPT's conversations)."""
    role: str | None = None
    """Name of a turn's role (otherwise role, or from)."""
    content: str | None = None
    """Name of a turn's text (otherwise content, or value)."""
    user: str | None = None
    """The role that means the user, where it is none of user and human."""
    assistant: str | None = None
    """The role that means the assistant, where it is none of assistant, gpt and model."""
    system: str | None = None
    """Column of a system message beside the turns or the question (otherwise system)."""
    prompt: str | None = None
    """Column of the question; with completion."""
    completion: str | None = None
    """Column of the answer; with prompt."""
    instruction: str | None = None
    """Column of the task (Alpaca); with output."""
    input: str | None = None
    """Column of what the task is about (Alpaca)."""
    output: str | None = None
    """Column of the answer (Alpaca); with instruction."""
    text: str | None = None
    """Column of plain text."""
    quote: str | None = None
    """Column of a quotation; with author."""
    author: str | None = None
    """Column of who said it; with quote."""

    def problems(self, prefix: str = "dataset.columns") -> list[str]:
        """List what cannot work in these keys, named with their prefix."""
        named = [(item.name, value) for item in fields(self) if (value := getattr(self, item.name))]
        return [
            f"{prefix}.{name}={value} is {prefix}.{first} as well. Name two columns."
            for (first, same), (name, value) in combinations(named, 2)
            if value == same
        ]


@dataclass(kw_only=True, slots=True)
class RowsConfig:
    """Where rows come from."""

    source: DataSource = DataSource.local
    """hub (Hugging Face hub id), local (file or folder) or package (an installed Python package)."""
    path: str = ""
    """Hub id, file (.jsonl .json .csv .parquet), folder of such files, or package."""
    config: str | None = None
    """Configuration (subset) of the hub data set."""
    split: str = "train"
    """Training split; slices as on the hub: "train[:5%]" (quote it for the shell)."""
    eval_split: str | None = None
    """Split to hold out; none: a share of the training rows is held out instead."""
    revision: str | None = None
    """Branch, tag or commit of the hub data set."""
    streaming: bool = False
    """Read rows of the hub data set as they arrive instead of downloading it whole."""
    max_rows: int | None = None
    """Use only this many rows, from the start."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def row_problems(self, prefix: str) -> list[str]:
        """List what cannot work in these keys, named with their prefix."""
        found = []
        if not self.path.strip():
            mixture = " A mixture's: dataset.mixture.NAME.path=my.jsonl." if prefix == "dataset" else ""
            found.append(f"{prefix}.path= is empty. Name your file, e.g. {prefix}.path=my.jsonl.{mixture}")
        else:
            found += find_place_problems(self.source, self.path, prefix)
        found += find_split_problems(self.split, f"{prefix}.split")
        if self.eval_split is not None:
            found += find_split_problems(self.eval_split, f"{prefix}.eval_split")
        if self.eval_split is not None and self.eval_split == self.split:
            found.append(
                f"{prefix}.eval_split={self.eval_split} is the training split itself. "
                "Name another one, or leave it out to hold out a share."
            )
        if self.streaming and self.source != DataSource.hub:
            found.append(
                f"{prefix}.streaming=true is for the hub, but {prefix}.source={self.source}. Leave it out: "
                "local rows are never held in memory."
            )
        found += [
            f"{prefix}.{key}={value} is for the hub, but {prefix}.source={self.source}. Leave it out."
            for key, value in (("config", self.config), ("revision", self.revision))
            if value is not None and self.source != DataSource.hub
        ]
        if self.max_rows is not None and not 1 <= self.max_rows < 2**63:
            found.append(
                f"{prefix}.max_rows={self.max_rows} must be at least 1. Leave it out to use every row."
            )
        return found


@dataclass(kw_only=True, slots=True)
class MixturePart(RowsConfig):
    """One source of a mixture."""

    weight: float = 1.0
    """Its share, in proportion to the weights of the other parts."""
