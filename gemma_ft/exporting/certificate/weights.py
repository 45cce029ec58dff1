"""A model's tensors, read from disk a block of rows at a time in the number format of a computation."""

from collections.abc import Mapping, Sequence
from io import FileIO
from itertools import pairwise

import torch

from gemma_ft.exporting.merging.changes import NewRows
from gemma_ft.exporting.merging.storage import TrainedStorage, is_quantised, load_as_trained
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, load_tensor, read_into

BLOCK_ELEMENTS = 1 << 22  # 16 MB in float32: large enough for the processor's speed, small beside activations


def row_blocks(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Divide a matrix into blocks of about `BLOCK_ELEMENTS`, as even as can be."""
    rows, columns = shape[0], max(1, shape[1])
    count = max(1, -(-rows * columns // BLOCK_ELEMENTS))
    return list(pairwise(i * rows // count for i in range(count + 1)))


class ModelWeights:
    """The tensors of one model, of which a block is in memory at a time."""

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        *,
        storage: TrainedStorage | None = None,
        new_rows: Mapping[str, NewRows] | None = None,
        replaced: frozenset[str] = frozenset(),
    ) -> None:
        """Describe where the tensors come from; nothing is read yet.

        Args:
            tensors: By the model's own names.
            dtype: The number format to give them in.
            storage: How training held the base's quantised tensors; None gives them as they are stored.
            new_rows: Rows that were trained one by one, by tensor.
            replaced: Tensors that are not the base's, and so were never quantised.
        """
        self.tensors = tensors
        self.dtype = dtype
        self._storage = storage
        self._held = None if storage is None else getattr(torch, storage.dtype)
        self._new_rows = {
            name: dict(zip(new.rows, load_tensor(new.values).to(dtype), strict=True))
            for name, new in (new_rows or {}).items()
        }
        self._replaced = replaced
        self.rounded_to: Mapping[str, torch.dtype] = {}
        """Number formats to round tensors to before they are given."""
        self._raw = bytearray()
        self._block = torch.empty(0, dtype=dtype)
        self._whole = torch.empty(0)
        self._whole_name = ""

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Return rows of a matrix; they are valid until the next call."""
        return self._rounded(name, self._unrounded_rows(name, first, last))

    def _rounded(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.rounded_to[name]).to(self.dtype) if name in self.rounded_to else values

    def _unrounded_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        stored = self.tensors[name]
        if name not in self._replaced and is_quantised(name, self._storage):
            return self._converted(self._as_trained(stored)[first:last])
        rows_RI = self._read(stored, first, last, None if name in self._replaced else self._held)
        for row, value_I in self._new_rows.get(name, {}).items():
            if first <= row < last:
                rows_RI[row - first] = value_I
        return rows_RI

    def picked(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Return some rows of a matrix, in the given order, as a tensor of their own."""
        stored = self.tensors[name]
        picked_RI = torch.empty(len(rows), *stored.shape[1:], dtype=self.dtype)
        for place, row in enumerate(rows):
            picked_RI[place] = self.rows(name, row, row + 1)[0]
        return picked_RI

    def whole(self, name: str) -> torch.Tensor:
        """Return a small tensor that is never quantised, such as a norm's."""
        value = load_tensor(self.tensors[name])
        held = value.dtype if name in self._replaced else self._held or value.dtype
        return self._rounded(name, value.to(held).to(self.dtype))

    def release(self) -> None:
        """Give the buffers back; the next call makes new ones."""
        self._raw = bytearray()
        self._block = torch.empty(0, dtype=self.dtype)
        self._whole = torch.empty(0)
        self._whole_name = ""

    def _as_trained(self, stored: StoredTensor) -> torch.Tensor:
        """Dequantise a tensor whole: its scales belong together."""
        count = stored.shape[0] * stored.shape[1]
        if self._whole.numel() < count:
            self._whole = torch.empty(count, dtype=self._held)
            self._whole_name = ""
        whole_OI = self._whole[:count].view(stored.shape)
        if self._whole_name != stored.name:
            load_as_trained(stored, self._storage, whole_OI)
            self._whole_name = stored.name
        return whole_OI

    def _read(self, stored: StoredTensor, first: int, last: int, held: torch.dtype | None) -> torch.Tensor:
        columns = stored.shape[1]
        count = (last - first) * columns
        size = count * stored.item_bytes
        if len(self._raw) < size:
            self._raw = bytearray(size)
        with FileIO(stored.path) as file:
            start = stored.offset + first * columns * stored.item_bytes
            read_into(file, start, memoryview(self._raw)[:size])
        raw = torch.frombuffer(self._raw, dtype=getattr(torch, FLOAT_NAMES[stored.dtype]), count=count)
        return self._converted(raw.to(held or raw.dtype).view(-1, columns))

    def _converted(self, rows_RI: torch.Tensor) -> torch.Tensor:
        if rows_RI.dtype == self.dtype:
            return rows_RI
        if self._block.numel() < rows_RI.numel():
            self._block = torch.empty(rows_RI.numel(), dtype=self.dtype)
        return self._block[: rows_RI.numel()].view(rows_RI.shape).copy_(rows_RI)
