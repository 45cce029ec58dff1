"""A LoRA adapter's tensors, matched with the base's and checked, before anything is written."""

import re
from collections.abc import Mapping
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter_config import AdapterSettings, check_adapter_config
from gemma_ft.exporting.merging.changes import LoraUpdate
from gemma_ft.exporting.merging.tensor_files import (
    FLOAT_NAMES,
    StoredTensor,
    load_tensor,
    read_header,
    read_json,
)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)(?:\.weight)?"
)
_A, _B, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def read_adapter(folder: Path, base: Mapping[str, StoredTensor]) -> dict[str, LoraUpdate]:
    """Match an adapter with the base it was trained on.

    Args:
        folder: A PEFT adapter's folder.
        base: The base's tensors by name.

    Returns:
        The update of each base tensor that gets one.

    Raises:
        ExportError: The adapter is of a kind that cannot be merged, belongs to another base, is incomplete or
            holds numbers that are not finite.
    """
    settings = check_adapter_config(read_json(folder / ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG))
    parts = _parts_by_module(folder / ADAPTER_FILE)
    try:
        updates = {f"{name}.weight": _update(name, found, settings) for name, found in parts.items()}
        _check_targets(set(parts), base, settings)
    except (TypeError, ValueError, ArithmeticError, re.error) as problem:
        raise ExportError(
            f"{settings.source} cannot be understood ({problem}). Save it with PEFT."
        ) from problem
    for name, update in updates.items():
        _check_shapes(name, update, base[name])
    for update in updates.values():
        _check_finite(update)
    return updates


def _parts_by_module(file: Path) -> dict[str, dict[str, StoredTensor]]:
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in read_header(file).items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ExportError(
                f"{file}: {name} is no LoRA matrix of a linear layer, which export cannot merge. "
                "Merge this adapter with PEFT."
            )
        if stored.dtype not in FLOAT_NAMES:
            raise ExportError(f"{file}: {name} is stored as {stored.dtype}. Save it as F32, BF16 or F16.")
        modules.setdefault(match["module"], {})[match["part"]] = stored
    if not modules:
        raise ExportError(f"{file} holds no tensors, so there is nothing to merge. Save the adapter again.")
    return modules


def _update(module: str, parts: Mapping[str, StoredTensor], settings: AdapterSettings) -> LoraUpdate:
    needed = {_A, _B} | ({_MAGNITUDE} if settings.dora else set())
    if needed != parts.keys():
        kind = "lacks" if needed - parts.keys() else "has, without use_dora,"
        part = min(needed ^ parts.keys())
        raise ExportError(f"{settings.source}: the adapter {kind} {module}.{part}. Save it again with PEFT.")
    rank = settings.rank(module)
    if parts[_A].shape[0] != rank:
        raise ExportError(
            f"{settings.source} says rank {rank} for {module}, but its lora_A has shape "
            f"{parts[_A].shape}. Export the folder as PEFT saved it."
        )
    return LoraUpdate(parts[_A], parts[_B], parts.get(_MAGNITUDE), settings.scale(module))


def _check_targets(found: set[str], base: Mapping[str, StoredTensor], settings: AdapterSettings) -> None:
    linear = {
        name.removesuffix(".weight")
        for name, tensor in base.items()
        if len(tensor.shape) == 2 and name.endswith(".weight")
    }
    named = {module for module in linear if settings.targets(module)}
    _check_embeddings(named)
    if foreign := found - linear:
        raise ExportError(
            f"{settings.source}: the adapter changes {min(foreign)}, which the base does not have "
            f"({len(foreign)} such of {len(found)}). Export with the base it was trained on."
        )
    if unnamed := found - named:
        raise ExportError(
            f"{settings.source}: the adapter holds {min(unnamed)}, which target_modules does not name "
            f"({len(unnamed)} such of {len(found)}). Export the folder as PEFT saved it."
        )
    if missing := named - found:
        raise ExportError(
            f"{settings.source}: target_modules names {min(missing)}, which the adapter lacks "
            f"({len(missing)} such of {len(named)}). Save the adapter again, whole."
        )


def _check_embeddings(named: set[str]) -> None:
    for module in sorted(named):
        if module.rpartition(".")[2] == "embed_tokens":
            raise ExportError(
                f"target_modules={module} is LoRA on an embedding, which export cannot merge. "
                "Train the linear layers only (adapter.targets=[all-linear])."
            )


def _check_shapes(name: str, update: LoraUpdate, weight: StoredTensor) -> None:
    outputs, inputs = weight.shape
    rank = update.a.shape[0]
    shapes = {
        update.a: (rank, inputs),
        update.b: (outputs, rank),
        update.magnitude: (outputs,),
    }
    for part, shape in shapes.items():
        if part is not None and part.shape != shape:
            raise ExportError(
                f"{part.path}: {part.name} has shape {part.shape}, but {name} of the base needs {shape}. "
                "Export with the base it was trained on."
            )
    if weight.dtype not in FLOAT_NAMES:
        raise ExportError(
            f"{weight.path}: {name} is stored as {weight.dtype}, which cannot be merged into. "
            "Use the full-precision checkpoint as base."
        )


def _check_finite(update: LoraUpdate) -> None:
    import torch

    for part in (update.a, update.b, update.magnitude):
        if part is not None and not torch.isfinite(load_tensor(part)).all():
            raise ExportError(
                f"{part.path}: {part.name} holds NaN or infinity: the training diverged. "
                "Export an earlier checkpoint, or train again with a lower learning rate."
            )
