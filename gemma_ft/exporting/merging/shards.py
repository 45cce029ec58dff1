"""Which tensor goes to which safetensors file, and the writing and checking of those files."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.tensor_files import (
    INDEX_FILE,
    SINGLE_FILE,
    StoredTensor,
    read_checkpoint,
    read_into,
)

_HEADER_START = len('{"__metadata__":{"format":"pt"}}') + 16  # length field and padding included
_COPIED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be written: its name and the tensors in the order of their bytes."""

    file: str
    tensors: tuple[StoredTensor, ...]


def plan_shards(tensors: Iterable[StoredTensor], shard_bytes: int) -> list[Shard]:
    """Divide tensors over files of at most `shard_bytes`, headers included.

    Only a tensor that is larger by itself gets a larger file. Wider number formats come first within a file,
    which keeps every tensor aligned to its own elements.
    """
    groups: list[list[StoredTensor]] = []
    room = 0
    for tensor in tensors:
        cost = tensor.nbytes + _entry_bound(tensor)
        if not groups or cost > room:
            groups.append([])
            room = shard_bytes - _HEADER_START
        groups[-1].append(tensor)
        room -= cost
    ordered = [tuple(sorted(group, key=lambda tensor: -tensor.item_bytes)) for group in groups]
    if len(ordered) == 1:
        return [Shard(SINGLE_FILE, ordered[0])]
    count = len(ordered)
    return [Shard(f"model-{i:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(ordered, 1)]


def _entry_bound(tensor: StoredTensor) -> int:
    longest = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [10**15, 10**15]}
    return len(json.dumps({tensor.name: longest}))


def header_of(shard: Shard) -> bytes:
    """Build the first bytes of a safetensors file: length, entries, padding to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    end = 0
    for tensor in shard.tensors:
        first, end = end, end + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [first, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def open_shard(folder: Path, shard: Shard) -> Iterator[FileIO]:
    """Open a shard behind its header, and bring it to the disk when the block ends well."""
    with FileIO(folder / shard.file, "xb") as file:
        write_all(file, memoryview(header_of(shard)))
        yield file
        os.fsync(file.fileno())


def write_all(file: FileIO, view: memoryview) -> None:
    """Write a whole buffer at the file's position."""
    done = 0
    while done < len(view):
        done += file.write(view[done:])


def copy_tensor(source: FileIO, tensor: StoredTensor, target: FileIO) -> None:
    """Copy a tensor's bytes to the target's position, inside the kernel where it can do that."""
    left = tensor.nbytes
    if hasattr(os, "copy_file_range"):
        left = _copy_in_kernel(source, tensor, target)
    buffer = memoryview(bytearray(min(left, _COPIED_BYTES)))
    while left:
        piece = buffer[: min(left, _COPIED_BYTES)]
        read_into(source, tensor.offset + tensor.nbytes - left, piece)
        write_all(target, piece)
        left -= len(piece)


def _copy_in_kernel(source: FileIO, tensor: StoredTensor, target: FileIO) -> int:
    """Return how many bytes are left for the ordinary way."""
    left = tensor.nbytes
    while left:
        offset = tensor.offset + tensor.nbytes - left
        try:
            count = os.copy_file_range(source.fileno(), target.fileno(), left, offset)
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return left  # another file system, or one that cannot do it
        if not count:
            return left
        left -= count
    return left


def copy_file(source: Path, target: Path) -> None:
    """Copy a file byte for byte, and bring it to the disk."""
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def write_index(folder: Path, shards: list[Shard]) -> None:
    """Write the index of several shards; a single file needs none."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for shard in shards for tensor in shard.tensors)},
        "weight_map": {tensor.name: shard.file for shard in shards for tensor in shard.tensors},
    }
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8 with plain line ends, and bring it to the disk."""
    with FileIO(path, "wb") as file:
        write_all(file, memoryview(text.encode()))
        os.fsync(file.fileno())


def check_written(folder: Path, shards: list[Shard]) -> None:
    """Read the written files back and compare names, formats and shapes with the plan.

    Raises:
        ExportError: Something planned is missing or different.
    """
    found = read_checkpoint(folder)
    planned = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    if found.keys() != planned.keys():
        first = min(found.keys() ^ planned.keys())
        raise ExportError(f"{folder} was written, but {first} is not where it should be. Export again.")
    for name, tensor in planned.items():
        if (found[name].dtype, found[name].shape) != (tensor.dtype, tensor.shape):
            raise ExportError(f"{folder} was written, but {name} reads back differently. Export again.")
