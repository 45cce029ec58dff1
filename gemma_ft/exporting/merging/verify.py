"""The proof that a folder holds exactly the merge: each tensor read from the disk and computed again."""

from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from gemma_ft.exporting.merging.merge import MergePlan
from gemma_ft.exporting.merging.pool import map_in_threads
from gemma_ft.exporting.merging.tensor_files import StoredTensor, holds, read_checkpoint, same_bytes


@dataclass(frozen=True, slots=True)
class Exactness:
    """What a folder's tensors are, beside those of the base and of the merge."""

    unchanged: int
    """Tensors that equal the base's byte for byte, as the merge has them."""
    changed: int
    """Tensors that equal the merge bit for bit, and differ from the base's."""
    differing: tuple[str, ...]
    """Names of tensors that are not as the merge has them, missing ones and others' included."""


def verify_merge(plan: MergePlan, folder: Path) -> Exactness:
    """Compare every tensor of a folder with the merge, computed again from the plan's inputs.

    Args:
        plan: What was merged.
        folder: Where the result lies.

    Raises:
        ExportError: The folder cannot be read.
    """
    import torch

    found = read_checkpoint(folder)
    shared = sorted(found.keys() & plan.tensors.keys())
    compare = partial(_changed, plan, plan.touched, torch.get_num_threads())
    changed = dict(zip(shared, map_in_threads(compare, [found[name] for name in shared]), strict=True))
    wrong = {name for name in shared if changed[name] is None} | (found.keys() ^ plan.tensors.keys())
    counts = list(changed.values())
    return Exactness(counts.count(False), counts.count(True), tuple(sorted(wrong)))


def _changed(plan: MergePlan, touched: frozenset[str], mean_threads: int, found: StoredTensor) -> bool | None:
    """Say whether a tensor differs from the base's, or None where it is not as the merge has it."""
    from gemma_ft.exporting.merging.row_changes import merged_blocks

    base = plan.tensors[found.name]
    if base.name not in touched:
        return False if same_bytes(base, found) else None
    if (base.dtype, base.shape) != (found.dtype, found.shape):
        return None
    changed = False
    with FileIO(base.path) as before, FileIO(found.path) as after:
        change = plan.changes.get(base.name)
        for start, piece in merged_blocks(base, change, plan.storage, mean_threads):
            if not holds(after, found.offset + start, piece):
                return None
            changed = changed or not holds(before, base.offset + start, piece)
    return changed
