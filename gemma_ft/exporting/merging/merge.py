"""The streaming merge: base and trained weights become one checkpoint, tensor by tensor, model-free."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter import ADAPTER_CONFIG, read_adapter
from gemma_ft.exporting.merging.changes import Change
from gemma_ft.exporting.merging.pool import map_in_threads
from gemma_ft.exporting.merging.shards import (
    check_written,
    copy_tensor,
    create_shards,
    plan_shards,
    start_write_back,
    sync_file,
    write_index,
)
from gemma_ft.exporting.merging.storage import TrainedStorage, is_quantised
from gemma_ft.exporting.merging.tensor_files import (
    FLOAT_NAMES,
    StoredTensor,
    read_checkpoint,
    read_json,
    same_bytes,
)

_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_SPARE_BYTES = 100_000_000  # tokenizer, configuration, card


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge whose inputs have been checked."""

    base: Path
    trained: Path
    tensors: Mapping[str, StoredTensor]
    """The base's tensors, which are also the result's names, formats and shapes."""
    changes: Mapping[str, Change]
    """What replaces or updates them."""
    storage: TrainedStorage | None
    """How training held the base that is merged onto; None for the base as it is."""

    @property
    def touched(self) -> frozenset[str]:
        """The tensors that are computed; the others are copied."""
        held = (name for name in self.tensors if is_quantised(name, self.storage))
        return frozenset(self.changes) | frozenset(held)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge has written."""

    tensors: int
    changed: int
    """Tensors with at least one element that differs from the base's."""
    total_bytes: int
    """Bytes of all tensors, headers aside."""
    shards: int


def merge_checkpoint(base: Path, trained: Path, destination: Path, *, shard_bytes: int) -> MergeReport:
    """Merge what was trained into its base and write the weights as safetensors.

    Args:
        base: The base's folder: config.json and safetensors, in one file or with an index.
        trained: A PEFT LoRA adapter's folder, or the folder of a full fine-tune.
        destination: An empty or new folder.
        shard_bytes: Largest file, unless a single tensor is larger.

    Raises:
        ExportError: The two don't fit together, or the disk is too small; nothing was written then. Or the
            result holds numbers that are not finite; the folder is not to be used then.
    """
    return write_merge(plan_merge(base, trained), destination, shard_bytes=shard_bytes)


def plan_merge(base: Path, trained: Path, storage: TrainedStorage | None = None) -> MergePlan:
    """Check that trained weights and base fit together, reading headers and the adapter only.

    Args:
        base: The base's folder.
        trained: A PEFT LoRA adapter's folder, or the folder of a full fine-tune.
        storage: How training held the base, to merge onto that; None to merge onto the base as it is.

    Raises:
        ExportError: They don't, or they are of a kind that cannot be merged.
    """
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise ExportError(f"{base} holds quantised weights. Merge into the full-precision checkpoint.")
    tensors = _without_tied_head(read_checkpoint(base), config, base)
    adapter, full = (trained / ADAPTER_CONFIG).is_file(), (trained / "config.json").is_file()
    if adapter == full:
        kinds = "both an adapter and a full model" if adapter else "neither an adapter nor a full model"
        raise ExportError(
            f"{trained} holds {kinds} ({ADAPTER_CONFIG}, config.json). Export a folder with one of them."
        )
    changes: Mapping[str, Change] = (
        read_adapter(trained, tensors) if adapter else _full(trained, tensors, config)
    )
    plan = MergePlan(base, trained, tensors, changes, storage)
    for tensor in (tensors[name] for name in sorted(plan.touched)):
        if tensor.dtype not in FLOAT_NAMES:
            raise ExportError(
                f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}, which cannot be merged into. "
                "Use the full-precision checkpoint as base."
            )
    return plan


def _without_tied_head(
    tensors: dict[str, StoredTensor], config: Mapping[str, Any], folder: Path
) -> dict[str, StoredTensor]:
    """Drop the copy of a head that is the embedding itself."""
    if _HEAD not in tensors or not config.get("tie_word_embeddings", True):
        return tensors
    if _EMBEDDING in tensors and not same_bytes(tensors[_HEAD], tensors[_EMBEDDING]):
        raise ExportError(
            f"{folder} says that head and embedding are tied, but {_HEAD} differs from {_EMBEDDING}. "
            "Set tie_word_embeddings to false in its config.json, or remove the tensor that is wrong."
        )
    return {name: tensor for name, tensor in tensors.items() if name != _HEAD}


def _full(
    folder: Path, base: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    trained = _without_tied_head(read_checkpoint(folder), config, folder)
    if trained.keys() != base.keys():
        name = min(trained.keys() ^ base.keys())
        side = "lacks" if name in base else "has, unlike its base,"
        raise ExportError(f"{folder} {side} {name}. Export with the base it was trained from.")
    for name, tensor in trained.items():
        if tensor.shape != base[name].shape:
            raise ExportError(
                f"{folder}: {name} has shape {tensor.shape}, but {base[name].shape} in the base. "
                "Export with the base it was trained from."
            )
        if not {tensor.dtype, base[name].dtype} <= FLOAT_NAMES.keys():
            raise ExportError(
                f"{folder}: {name} is stored as {tensor.dtype}, and as {base[name].dtype} in the base. "
                "Export weights in F32, BF16 or F16."
            )
    return trained


def write_merge(plan: MergePlan, destination: Path, *, shard_bytes: int) -> MergeReport:
    """Write the shards and the index of a checked merge, and read them back.

    Args:
        plan: The merge.
        destination: A folder without weights; it is made where it is missing.
        shard_bytes: Largest file, unless a single tensor is larger.

    Raises:
        ExportError: The disk is too small, a result is not finite, or the files read back differently.
    """
    import torch

    total = sum(tensor.nbytes for tensor in plan.tensors.values())
    if any(destination.glob("*.safetensors*")):
        raise ExportError(f"{destination} holds weights already. Merge into a new folder.")
    check_space(destination, total)
    destination.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(plan.tensors.values(), shard_bytes)
    targets = create_shards(destination, shards).values()
    write = partial(_write_tensor, plan, plan.touched, torch.get_num_threads())
    changed = sum(map_in_threads(write, targets))
    for shard in shards:
        sync_file(destination / shard.file)
    write_index(destination, shards)
    check_written(destination, shards)
    return MergeReport(len(plan.tensors), changed, total, len(shards))


def check_space(folder: Path, tensor_bytes: int) -> None:
    """Refuse a merge that the disk cannot hold; the folder need not exist yet.

    Raises:
        ExportError: The message has both numbers.
    """
    needed = tensor_bytes + _SPARE_BYTES
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ExportError(
            f"{folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free. "
            "Free some space, or export to another disk."
        )


def _write_tensor(plan: MergePlan, touched: frozenset[str], mean_threads: int, target: StoredTensor) -> bool:
    """Write one tensor and say whether it differs from the base's."""
    from gemma_ft.exporting.merging.row_changes import merged_blocks, write_rows

    tensor = plan.tensors[target.name]
    changed = False
    if tensor.name in touched:
        blocks = merged_blocks(tensor, plan.changes.get(tensor.name), plan.storage, mean_threads)
        changed = write_rows(blocks, tensor, target)
    else:
        copy_tensor(tensor, target)
    start_write_back(target)
    return changed
