"""A LoRA adapter's tensors, matched with the base's and checked, before anything is written."""

import re
from collections.abc import Mapping
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter_config import AdapterSettings, check_adapter_config
from gemma_ft.exporting.merging.adapter_tensors import AdapterTensors, check_finite, read_adapter_tensors
from gemma_ft.exporting.merging.changes import Change
from gemma_ft.exporting.merging.lora_updates import lora_updates
from gemma_ft.exporting.merging.tensor_files import StoredTensor, read_json
from gemma_ft.exporting.merging.token_rows import new_rows
from gemma_ft.exporting.merging.whole_tensors import whole_tensors

ADAPTER_CONFIG = "adapter_config.json"


def read_adapter(folder: Path, base: Mapping[str, StoredTensor]) -> dict[str, Change]:
    """Match an adapter with the base it was trained on.

    Args:
        folder: A PEFT adapter's folder.
        base: The base's tensors by name, without the head where it is the embedding itself.

    Returns:
        What becomes of each base tensor that changes.

    Raises:
        ExportError: The adapter is of a kind that cannot be merged, belongs to another base, is incomplete or
            holds numbers that are not finite.
    """
    settings = check_adapter_config(read_json(folder / ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG))
    found = read_adapter_tensors(folder)
    try:
        changes = _changes(found, base, settings)
    except (TypeError, ValueError, AttributeError, ArithmeticError, re.error) as problem:
        raise ExportError(
            f"{settings.source} cannot be understood ({problem}). Save it with PEFT."
        ) from problem
    for stored in found.all():
        check_finite(stored)
    return changes


def _changes(
    found: AdapterTensors, base: Mapping[str, StoredTensor], settings: AdapterSettings
) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for more in (
        lora_updates(found.lora, base, settings),
        new_rows(found.rows, base, settings),
        whole_tensors(found, base, settings),
    ):
        if twice := changes.keys() & more.keys():
            raise ExportError(
                f"{settings.source} says that {min(twice)} was trained in two ways at once, which PEFT "
                "cannot merge either. Train it in one of them."
            )
        changes |= more
    return changes
