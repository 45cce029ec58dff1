"""Safetensors files read by offset: headers, checkpoints of one or many files, and tensors in pieces.

Nothing here maps a file into memory: pages of a mapped file count as resident memory, and a merge
that reads 17 GB must not hold them.
"""

import json
import math
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.errors import ExportError

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
FLOAT_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The number formats that can be merged, from safetensors' names to torch's."""

_HEADER_LIMIT = 100_000_000  # the format's own bound
_COMPARED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies."""

    name: str
    dtype: str
    """Number format in safetensors' words, such as BF16."""
    shape: tuple[int, ...]
    path: Path
    offset: int
    """First byte, counted from the start of the file."""
    nbytes: int

    @property
    def item_bytes(self) -> int:
        """Return the size of one element."""
        return _ITEM_BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read where each tensor of a safetensors file lies, in the order of their bytes.

    Raises:
        ExportError: The file is missing, cut short or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError("its header does not fit into it")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        tensors = [_stored(name, entry, path, 8 + length) for name, entry in entries.items()]
        tensors.sort(key=lambda tensor: tensor.offset)
        _check_layout(tensors, 8 + length, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ExportError(
            f"{path} is no whole safetensors file ({problem}). Fetch or save it again."
        ) from problem
    return {tensor.name: tensor for tensor in tensors}


def _stored(name: str, entry: dict[str, Any], path: Path, data_start: int) -> StoredTensor:
    first, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if dtype not in _ITEM_BITS:
        raise ValueError(f"{name} has the unknown number format {dtype}")
    if end - first != math.prod(shape) * _ITEM_BITS[dtype] // 8:
        raise ValueError(f"{name} has {end - first} bytes, which is not what its shape {shape} needs")
    return StoredTensor(name, dtype, shape, path, data_start + first, end - first)


def _check_layout(tensors: list[StoredTensor], data_start: int, size: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            raise ValueError(f"{tensor.name} does not follow the tensor before it")
        position += tensor.nbytes
    if position != size:
        raise ValueError(f"it has {size} bytes where its header asks for {position}")


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Read where each tensor of a model folder lies, in one file or in the files of its index.

    Raises:
        ExportError: There are no safetensors, or index and files disagree.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    index = folder / INDEX_FILE
    if not index.is_file():
        raise ExportError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}. Weights are read as safetensors only."
        )
    weight_map: dict[str, str] = read_json(index)["weight_map"]
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        tensors.update(read_header(folder / file))
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].path.name != file:
            raise ExportError(f"{index} places {name} in {file}, which has no such tensor. Fetch both again.")
    return {name: tensor for name, tensor in tensors.items() if name in weight_map}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ExportError: The file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ExportError(f"{path} cannot be read as JSON ({problem}). Fetch or save it again.") from problem
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds no JSON object. Fetch or save it again.")
    return content


def read_into(file: FileIO, offset: int, view: memoryview) -> None:
    """Fill a buffer with a file's bytes from an offset on.

    Raises:
        ExportError: The file ends before the buffer is full.
    """
    file.seek(offset)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ExportError(f"{file.name} ended early while it was read. Leave it alone during an export.")
        done += count


def load_tensor(stored: StoredTensor) -> "torch.Tensor":
    """Load one whole floating-point tensor, in the number format it is stored in."""
    import torch

    if not stored.nbytes:
        return torch.empty(stored.shape, dtype=getattr(torch, FLOAT_NAMES[stored.dtype]))
    raw = bytearray(stored.nbytes)
    with FileIO(stored.path) as file:
        read_into(file, stored.offset, memoryview(raw))
    return torch.frombuffer(raw, dtype=getattr(torch, FLOAT_NAMES[stored.dtype])).view(stored.shape)


def holds(file: FileIO, offset: int, expected: memoryview) -> bool:
    """Say whether a file has just these bytes from an offset on."""
    found = bytearray(len(expected))
    read_into(file, offset, memoryview(found))
    return found == expected


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Say whether two stored tensors are equal in format, shape and every byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    buffer = memoryview(bytearray(min(one.nbytes, _COMPARED_BYTES)))
    with FileIO(one.path) as first, FileIO(other.path) as second:
        for start in range(0, one.nbytes, _COMPARED_BYTES):
            piece = buffer[: one.nbytes - start]
            read_into(first, one.offset + start, piece)
            if not holds(second, other.offset + start, piece):
                return False
    return True
