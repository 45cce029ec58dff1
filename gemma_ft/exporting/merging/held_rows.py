"""The rows of a base tensor: as its file has them, or as training held them.

Quantised rows are bit for bit what transformers' `model.dequantize()` gives. bitsandbytes does all of the
arithmetic; here the tensor is only divided, at the borders of its blocks.
"""

from io import FileIO
from threading import Lock
from typing import Protocol

import torch

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.merging.row_blocks import matrix_shape, row_blocks
from gemma_ft.exporting.merging.storage import TrainedStorage, is_quantised
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, read_into
from gemma_ft.modeling.libraries import quiet_bitsandbytes

_NF4_BLOCK = 64  # weights that share a scale
_SCALE_BLOCK = 256  # scales that share a scale, with double quantisation
_IMPORTING = Lock()


class HeldRows(Protocol):
    """Reads a tensor by blocks of rows."""

    dtype: torch.dtype

    def blocks(self) -> list[tuple[int, int]]:
        """Divide the rows: the first of each block, and the first beyond it."""

    def read(self, first: int, last: int) -> torch.Tensor:
        """Return the rows of a block; the next call may overwrite them."""


def open_rows(
    tensor: StoredTensor, file: FileIO, storage: TrainedStorage | None, mean_threads: int
) -> HeldRows:
    """Read a tensor as training held it.

    Args:
        tensor: A tensor of the base, in a floating-point format.
        file: Its file, open.
        storage: How training held the base; None for as it is.
        mean_threads: Threads for the one sum whose last bit depends on their number.
    """
    stored = FileRows(tensor, file)
    if storage is None:
        return stored
    cast = CastRows(stored, getattr(torch, storage.dtype))
    if not is_quantised(tensor.name, storage):
        return cast
    _import_bitsandbytes()
    if storage.method is QuantizationMethod.int8:
        return Int8Rows(cast)
    if storage.double_quant:
        return DoubleQuantRows(cast, mean_threads)
    return Nf4Rows(cast)


def _import_bitsandbytes() -> None:
    """Import bitsandbytes whole before any of it is used: a second thread would find its kernels missing."""
    with _IMPORTING:
        quiet_bitsandbytes()
        import bitsandbytes  # noqa: F401


class FileRows:
    """Rows in the file's own number format."""

    def __init__(self, tensor: StoredTensor, file: FileIO) -> None:
        self._tensor = tensor
        self._file = file
        self.shape = matrix_shape(tensor)
        self.dtype: torch.dtype = getattr(torch, FLOAT_NAMES[tensor.dtype])
        self._buffer = bytearray()

    def blocks(self) -> list[tuple[int, int]]:
        """Divide the rows."""
        return row_blocks(*self.shape)

    def read(self, first: int, last: int) -> torch.Tensor:
        """Return rows first to last - 1."""
        row_bytes = self.shape[1] * self._tensor.item_bytes
        size = (last - first) * row_bytes
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        read_into(self._file, self._tensor.offset + first * row_bytes, view)
        return torch.frombuffer(view, dtype=self.dtype).view(last - first, self.shape[1])


class CastRows:
    """Rows in the number format that training computed in."""

    def __init__(self, rows: FileRows, dtype: torch.dtype) -> None:
        self._rows = rows
        self.dtype = dtype
        self.shape = rows.shape

    def blocks(self) -> list[tuple[int, int]]:
        """Divide the rows."""
        return self._rows.blocks()

    def read(self, first: int, last: int) -> torch.Tensor:
        """Return rows first to last - 1."""
        return self._rows.read(first, last).to(self.dtype)


class Int8Rows:
    """Rows through 8 bit, each with its own scale."""

    def __init__(self, rows: CastRows) -> None:
        self._rows = rows
        self.dtype = rows.dtype

    def blocks(self) -> list[tuple[int, int]]:
        """Divide the rows."""
        return self._rows.blocks()

    def read(self, first: int, last: int) -> torch.Tensor:
        """Return rows first to last - 1."""
        from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

        half_RI = self._rows.read(first, last).half()  # bitsandbytes takes fp16 only
        values_RI, scales_R, _ = int8_vectorwise_quant(half_RI)
        held_RI: torch.Tensor = int8_vectorwise_dequant(values_RI, scales_R).to(self.dtype)
        return held_RI


class Nf4Rows:
    """Rows through 4 bit (Dettmers et al. 2023, section 3), each run of 64 weights with its own scale."""

    def __init__(self, rows: CastRows) -> None:
        self._rows = rows
        self.dtype = rows.dtype

    def blocks(self) -> list[tuple[int, int]]:
        """Divide the rows, unless a run of 64 goes on in the next row.

        No Gemma has such a matrix. bitsandbytes 0.50 mistakes its scales on processors with AVX512, in
        training too; what it makes of the whole is what training held.
        """
        rows, columns = self._rows.shape
        return [(0, rows)] if columns % _NF4_BLOCK else self._rows.blocks()

    def read(self, first: int, last: int) -> torch.Tensor:
        """Return rows first to last - 1."""
        return self._dequantise(*self._quantise(first, last), last - first)

    def _quantise(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pairs of 4-bit weights, and the scales."""
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            self._rows.read(first, last), blocksize=_NF4_BLOCK, compress_statistics=False, quant_type="nf4"
        )
        return packed, state.absmax

    def _dequantise(self, packed: torch.Tensor, scales: torch.Tensor, rows: int) -> torch.Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            absmax=scales,
            shape=(rows, self._rows.shape[1]),
            dtype=self.dtype,
            blocksize=_NF4_BLOCK,
            quant_type="nf4",
        )
        held_RI: torch.Tensor = dequantize_4bit(packed, state)
        return held_RI


class DoubleQuantRows(Nf4Rows):
    """Rows through 4 bit with scales through 8 bit, around the mean of all scales of the tensor.

    The 4-bit form of the whole tensor is kept, a quarter of its size in 16 bit: quantising takes the time.
    """

    def __init__(self, rows: CastRows, mean_threads: int) -> None:
        super().__init__(rows)
        count = rows.shape[0] * rows.shape[1]
        self._packed = torch.empty(-(-count // 2), 1, dtype=torch.uint8)
        scales = torch.empty(-(-count // _NF4_BLOCK))
        for first, last in self.blocks():
            pairs, runs = self._places(first, last)
            self._packed[pairs], scales[runs] = self._quantise(first, last)
        self._scales = _through_8bit(scales, mean_threads)

    def read(self, first: int, last: int) -> torch.Tensor:
        """Return rows first to last - 1."""
        pairs, runs = self._places(first, last)
        return self._dequantise(self._packed[pairs], self._scales[runs], last - first)

    def _places(self, first: int, last: int) -> tuple[slice, slice]:
        """Say where the pairs of weights and the scales of some rows lie."""
        start, end = first * self._rows.shape[1], last * self._rows.shape[1]
        return (
            slice(start // 2, -(-end // 2)),
            slice(start // _NF4_BLOCK, -(-end // _NF4_BLOCK)),
        )


def _through_8bit(scales: torch.Tensor, mean_threads: int) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    own_threads = torch.get_num_threads()
    torch.set_num_threads(mean_threads)  # a sum is divided among them, so its last bit depends on them
    offset = scales.mean()
    torch.set_num_threads(own_threads)
    quantised, state = quantize_blockwise(scales.sub_(offset), blocksize=_SCALE_BLOCK)
    found: torch.Tensor = dequantize_blockwise(quantised, state)
    return found.add_(offset)
