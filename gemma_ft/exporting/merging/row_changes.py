"""The arithmetic of a merge, a block of rows at a time, rounded exactly as PEFT's `merge_and_unload()`.

Shape suffixes: R rows of the block, I inputs, O outputs, K rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from itertools import pairwise
from typing import Protocol

import torch

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.changes import LoraUpdate
from gemma_ft.exporting.merging.shards import write_all
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, load_tensor, read_into

BLOCK_ELEMENTS = 1 << 18  # the block, its float32 form and the adapter's rows stay in the processor's cache
_FEWEST_ROWS = 16


class RowChange(Protocol):
    """A new value for each row of one tensor."""

    def merge_rows(self, first: int, weight_RI: torch.Tensor, out_RI: torch.Tensor) -> None:
        """Write the new rows from `first` on.

        Args:
            first: Number of the first row.
            weight_RI: The base's rows, in the base's number format.
            out_RI: Where the float32 result goes.
        """


class LoraRows:
    """Add a LoRA or DoRA update to its base weight.

    LoRA: W + s * (B @ A) in float32. DoRA (Liu et al. 2024, equation 5): each row of that sum is scaled
    from its own length to the trained one.
    """

    def __init__(self, update: LoraUpdate) -> None:
        self._a_KI = load_tensor(update.a).float()
        self._b_OK = load_tensor(update.b).float()
        self._magnitude_O = None if update.magnitude is None else load_tensor(update.magnitude).float()
        self._scale = update.scale

    def merge_rows(self, first: int, weight_RI: torch.Tensor, out_RI: torch.Tensor) -> None:
        """Write the merged rows from `first` on."""
        last = first + len(out_RI)
        torch.mm(self._b_OK[first:last], self._a_KI, out=out_RI)
        out_RI.mul_(self._scale)  # a step of its own: fused with the sum it would round once, not twice
        out_RI.add_(weight_RI)
        if self._magnitude_O is not None:
            length_R = torch.linalg.norm(out_RI, dim=1)
            out_RI.mul_((self._magnitude_O[first:last] / length_R).view(-1, 1))


class TrainedRows:
    """Put a full fine-tune's weights in the place of the base's."""

    def __init__(self, trained: StoredTensor, file: FileIO) -> None:
        self._trained = trained
        self._file = file

    def merge_rows(self, first: int, weight_RI: torch.Tensor, out_RI: torch.Tensor) -> None:
        """Write the trained rows from `first` on."""
        row_bytes = self._trained.item_bytes * out_RI.shape[1]
        raw = bytearray(row_bytes * len(out_RI))
        read_into(self._file, self._trained.offset + first * row_bytes, memoryview(raw))
        rows = torch.frombuffer(raw, dtype=getattr(torch, FLOAT_NAMES[self._trained.dtype]))
        out_RI.copy_(rows.view_as(out_RI))


def write_rows(source: FileIO, tensor: StoredTensor, change: RowChange, target: FileIO) -> bool:
    """Change a tensor of the base block by block, and write it at the target's position.

    Returns:
        Whether any element differs from the base's.

    Raises:
        ExportError: The result holds NaN or infinity.
    """
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    rows = tensor.nbytes // tensor.item_bytes // max(1, columns)
    blocks = row_blocks(rows, columns) if tensor.nbytes else []
    most = max((last - first for first, last in blocks), default=0) * columns
    dtype = getattr(torch, FLOAT_NAMES[tensor.dtype])
    before, after, exact = (
        bytearray(most * tensor.item_bytes),
        bytearray(most * tensor.item_bytes),
        torch.empty(most),
    )
    changed = False
    for first, last in blocks:
        count = (last - first) * columns
        size = count * tensor.item_bytes
        read_into(source, tensor.offset + first * columns * tensor.item_bytes, memoryview(before)[:size])
        weight_RI = torch.frombuffer(before, dtype=dtype, count=count).view(-1, columns)
        merged_RI = torch.frombuffer(after, dtype=dtype, count=count).view(-1, columns)
        exact_RI = exact[:count].view(-1, columns)
        change.merge_rows(first, weight_RI, exact_RI)
        merged_RI.copy_(exact_RI)
        _check_finite(merged_RI, tensor.name)
        changed = changed or not torch.equal(merged_RI, weight_RI)
        write_all(target, memoryview(after)[:size])
    return changed


def _check_finite(merged_RI: torch.Tensor, name: str) -> None:
    low, high = torch.aminmax(merged_RI)  # NaN wins both
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ExportError(
            f"{name} would hold NaN or infinity after the merge: the training diverged, or its result does "
            "not fit the base's number format. Export an earlier checkpoint."
        )


def row_blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Divide a matrix into blocks of about `BLOCK_ELEMENTS`, as even as can be.

    No block of a divided matrix has fewer than eight rows: a product of one or two rows goes another way
    through the linear algebra library and rounds differently from the same rows of the whole product.
    """
    count = max(1, -(-rows // max(_FEWEST_ROWS, BLOCK_ELEMENTS // max(1, columns))))
    edges = [i * rows // count for i in range(count + 1)]
    return list(pairwise(edges))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread.

    Several threads would divide a block once more, down to the one or two rows that round differently.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
