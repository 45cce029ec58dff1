"""Which tensor goes to which safetensors file, and the writing and checking of those files."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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


def create_shards(folder: Path, shards: Iterable[Shard]) -> dict[str, StoredTensor]:
    """Create the files with their headers, and return where each tensor is to be written."""
    places = {}
    for shard in shards:
        path, header = folder / shard.file, header_of(shard)
        with FileIO(path, "xb") as file:
            write_at(file, 0, memoryview(header))
        offset = len(header)
        for tensor in shard.tensors:
            places[tensor.name] = replace(tensor, path=path, offset=offset)
            offset += tensor.nbytes
    return places


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk."""
    with FileIO(path, "rb+") as file:
        os.fsync(file.fileno())


def start_write_back(target: StoredTensor) -> None:
    """Send a tensor that is written on its way to the disk, so that less is left to wait for in the end.

    The advice itself is that the pages are not needed; Linux begins to write those that are changed.
    """
    if hasattr(os, "posix_fadvise"):
        with FileIO(target.path) as file:
            os.posix_fadvise(file.fileno(), target.offset, target.nbytes, os.POSIX_FADV_DONTNEED)


def write_at(file: FileIO, offset: int, view: memoryview) -> None:
    """Write a whole buffer at an offset."""
    file.seek(offset)
    done = 0
    while done < len(view):
        done += file.write(view[done:])


def copy_tensor(source: StoredTensor, target: StoredTensor) -> None:
    """Copy a tensor's bytes to its place, inside the kernel where it can do that."""
    with FileIO(source.path) as old, FileIO(target.path, "rb+") as new:
        done = _copy_in_kernel(old, source, new, target) if hasattr(os, "copy_file_range") else 0
        buffer = memoryview(bytearray(min(source.nbytes - done, _COPIED_BYTES)))
        for start in range(done, source.nbytes, _COPIED_BYTES):
            piece = buffer[: source.nbytes - start]
            read_into(old, source.offset + start, piece)
            write_at(new, target.offset + start, piece)


def _copy_in_kernel(old: FileIO, source: StoredTensor, new: FileIO, target: StoredTensor) -> int:
    """Return how many bytes it has copied; the rest is left for the ordinary way."""
    done = 0
    while done < source.nbytes:
        try:
            count = os.copy_file_range(
                old.fileno(), new.fileno(), source.nbytes - done, source.offset + done, target.offset + done
            )
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return done  # another file system, or one that cannot do it
        if not count:
            return done
        done += count
    return done


def copy_file(source: Path, target: Path) -> None:
    """Copy a file byte for byte, and bring it to the disk."""
    shutil.copyfile(source, target)
    sync_file(target)


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
        write_at(file, 0, memoryview(text.encode()))
        os.fsync(file.fileno())


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files and read them back.

    Raises:
        ExportError: One reads back differently.
    """
    for name, text in texts.items():
        write_text(folder / name, text)
        if (folder / name).read_bytes() != text.encode():
            raise ExportError(f"{folder / name} was written, but reads back differently. Export again.")


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
