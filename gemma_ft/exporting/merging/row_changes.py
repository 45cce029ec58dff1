"""The arithmetic of a merge, a block of rows at a time, rounded exactly as PEFT's `merge_and_unload()`.

Shape suffixes: R rows of the block, I inputs, O outputs, K rank, W words of an embedding, D its width.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from io import FileIO
from typing import Protocol

import torch

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.changes import (
    BiasUpdate,
    Change,
    EmbeddingUpdate,
    LoraUpdate,
    NewRows,
)
from gemma_ft.exporting.merging.held_rows import FileRows, HeldRows, open_rows
from gemma_ft.exporting.merging.row_blocks import matrix_shape
from gemma_ft.exporting.merging.shards import write_at
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, holds, load_tensor


class RowChange(Protocol):
    """What becomes of the rows of one tensor."""

    def apply(self, first: int, rows_RI: torch.Tensor) -> None:
        """Change float32 rows in place, of which the first has the number `first`."""


class LoraRows:
    """Adds a LoRA or DoRA update to the weight it was trained on.

    LoRA: W + s * (B @ A) in float32. DoRA (Liu et al. 2024, equation 5): each row of that sum is scaled
    from its own length to the trained one.
    """

    def __init__(self, update: LoraUpdate) -> None:
        self._a_KI = load_tensor(update.a).float()
        self._b_OK = load_tensor(update.b).float()
        self._magnitude_O = None if update.magnitude is None else load_tensor(update.magnitude).float()
        self._scale = update.scale
        self._delta = torch.empty(0)

    def apply(self, first: int, rows_RI: torch.Tensor) -> None:
        """Change rows in place."""
        last = first + len(rows_RI)
        if self._delta.numel() < rows_RI.numel():
            self._delta = torch.empty(rows_RI.numel())
        delta_RI = self._delta[: rows_RI.numel()].view_as(rows_RI)
        torch.mm(self._b_OK[first:last], self._a_KI, out=delta_RI)
        delta_RI.mul_(self._scale)  # a step of its own: fused with the sum it would round once, not twice
        rows_RI.add_(delta_RI)
        if self._magnitude_O is not None:
            length_R = torch.linalg.norm(rows_RI, dim=1)
            rows_RI.mul_((self._magnitude_O[first:last] / length_R).view(-1, 1))


class EmbeddingRows:
    """Adds an adapter's update to the embedding it was trained on: E + s * (B @ A) transposed.

    PEFT rounds the update to the embedding's number format before the sum, unlike that of a linear layer.
    """

    def __init__(self, update: EmbeddingUpdate, dtype: torch.dtype) -> None:
        self._a_WK = load_tensor(update.a).float().T
        self._b_KD = load_tensor(update.b).float().T
        self._scale = update.scale
        self._dtype = dtype

    def apply(self, first: int, rows_RI: torch.Tensor) -> None:
        """Change rows in place."""
        delta_RI = torch.mm(self._a_WK[first : first + len(rows_RI)], self._b_KD)
        rows_RI.add_(delta_RI.mul_(self._scale).to(self._dtype))


class BiasRows:
    """Adds an adapter's bias to the layer's own: c + s * b, in float32."""

    def __init__(self, update: BiasUpdate) -> None:
        self._added_O1 = load_tensor(update.values).float().mul_(update.scale).view(-1, 1)

    def apply(self, first: int, rows_RI: torch.Tensor) -> None:
        """Change rows in place, an element each."""
        rows_RI.add_(self._added_O1[first : first + len(rows_RI)])


class ReplacedRows:
    """Puts trained rows in the place of the base's, and leaves the other rows."""

    def __init__(self, change: NewRows, file: FileIO) -> None:
        self._places = {row: place for place, row in enumerate(change.rows)}
        self._values = FileRows(change.values, file)

    def apply(self, first: int, rows_RI: torch.Tensor) -> None:
        """Change rows in place."""
        for row in self._places.keys() & range(first, first + len(rows_RI)):
            place = self._places[row]
            rows_RI[row - first].copy_(self._values.read(place, place + 1)[0])


def merged_blocks(
    tensor: StoredTensor, change: Change | None, storage: TrainedStorage | None, mean_threads: int
) -> Iterator[tuple[int, memoryview]]:
    """Compute a tensor of the merge, a block of rows at a time.

    Args:
        tensor: The base's tensor, whose shape and number format the result has.
        change: What was trained; None for nothing.
        storage: How training held the base; None to change the base as it is.
        mean_threads: As in `open_rows`.

    Yields:
        Where the block begins, in bytes from the start of the tensor, and its bytes, valid until the next.

    Raises:
        ExportError: The result holds NaN or infinity.
    """
    columns = matrix_shape(tensor)[1]
    dtype = getattr(torch, FLOAT_NAMES[tensor.dtype])
    with ExitStack() as files:
        held = _open_held(tensor, change, storage, mean_threads, files)
        row_change = _row_change(change, held, files)
        blocks = held.blocks()
        most = max((last - first for first, last in blocks), default=0) * columns
        raw, exact = bytearray(most * tensor.item_bytes), torch.empty(most)
        for first, last in blocks:
            count = (last - first) * columns
            exact_RI = exact[:count].view(-1, columns).copy_(held.read(first, last))
            if row_change is not None:
                row_change.apply(first, exact_RI)
            merged_RI = torch.frombuffer(raw, dtype=dtype, count=count).view_as(exact_RI).copy_(exact_RI)
            _check_finite(merged_RI, tensor.name)
            yield first * columns * tensor.item_bytes, memoryview(raw)[: count * tensor.item_bytes]


def _open_held(
    tensor: StoredTensor,
    change: Change | None,
    storage: TrainedStorage | None,
    mean_threads: int,
    files: ExitStack,
) -> HeldRows:
    """Read the weights that the change is made to, or that take the base's place."""
    if isinstance(change, StoredTensor):
        return FileRows(change, files.enter_context(FileIO(change.path)))
    file = files.enter_context(FileIO(tensor.path))
    if isinstance(change, NewRows):
        return FileRows(tensor, file)  # the rows that were not trained stay the base's own
    return open_rows(tensor, file, storage, mean_threads)


def _row_change(change: Change | None, held: HeldRows, files: ExitStack) -> RowChange | None:
    match change:
        case LoraUpdate():
            return LoraRows(change)
        case EmbeddingUpdate():
            return EmbeddingRows(change, held.dtype)
        case BiasUpdate():
            return BiasRows(change)
        case NewRows():
            return ReplacedRows(change, files.enter_context(FileIO(change.values.path)))
        case _:
            return None


def _check_finite(merged_RI: torch.Tensor, name: str) -> None:
    low, high = torch.aminmax(merged_RI)  # NaN wins both
    if not (math.isfinite(low.item()) and math.isfinite(high.item())):
        raise ExportError(
            f"{name} would hold NaN or infinity after the merge: the training diverged, or its result does "
            "not fit the base's number format. Export an earlier checkpoint."
        )


def write_rows(blocks: Iterator[tuple[int, memoryview]], tensor: StoredTensor, target: StoredTensor) -> bool:
    """Write the blocks of a tensor to its place, and say whether any byte differs from the base's."""
    changed = False
    with FileIO(tensor.path) as source, FileIO(target.path, "rb+") as file:
        for start, piece in blocks:
            write_at(file, target.offset + start, piece)
            changed = changed or not holds(source, tensor.offset + start, piece)
    return changed
