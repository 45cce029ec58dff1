"""A written checkpoint folder as it lies on disk, read once for all the rules about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.tensor_files import StoredTensor, read_checkpoint, read_json
from gemma_ft.families import Family


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What is in a checkpoint folder, and the base that it has to be like."""

    folder: Path
    base: Path
    family: Family
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    base_tensors: Mapping[str, StoredTensor]

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.config.get("tie_word_embeddings", True))

    def refusal(self, loader: str, why: str, mend: str = "") -> ExportError:
        """Build the error that names who would refuse the folder and why; it may not have its name yet."""
        name = self.folder.with_name(self.folder.name.removesuffix(".partial"))
        mend = mend or "Mend the base's folder, then export again."
        return ExportError(f"{name} would be refused by {loader}: {why}. {mend}")


def read_written(folder: Path, base: Path, family: Family) -> Written:
    """Read a folder's headers and settings; no weights are loaded.

    Raises:
        ExportError: A file is missing or cannot be read.
    """
    return Written(
        folder=folder,
        base=base,
        family=family,
        config=read_json(folder / "config.json"),
        generation=read_json(folder / "generation_config.json"),
        tensors=read_checkpoint(folder),
        base_tensors=read_checkpoint(base),
    )
