"""Fingerprints that training records and the export compares: of the base, and of each trained file."""

import hashlib
import json
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter import ADAPTER_CONFIG
from gemma_ft.exporting.merging.tensor_files import StoredTensor, read_checkpoint, read_into, read_json

_HEAD = "lm_head.weight"
_NAMES_OF_BASE = ("base_model_name_or_path", "revision")
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of each tensor: 64 KiB, a page from each of 16 places


def base_fingerprint(folder: Path) -> str:
    """Hash names, formats, shapes and a sample of the bytes of every tensor.

    It tells two fine-tunes of one model apart without reading either whole: a tensor in which most values
    changed is always seen, one in which a few rows changed may not be. It does not depend on how the tensors
    are divided over files, nor on a copy of the embedding as the head of a tied model.

    Args:
        folder: A model's folder.

    Returns:
        The SHA-256 in hexadecimal.

    Raises:
        ExportError: There are no whole safetensors.
    """
    tensors = read_checkpoint(folder)
    if read_json(folder / "config.json").get("tie_word_embeddings", True):
        tensors.pop(_HEAD, None)
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        total.update(_sample(tensor))
    return total.hexdigest()


def _sample(tensor: StoredTensor) -> bytearray:
    pieces = _places(tensor.nbytes)
    sample = bytearray(sum(size for _, size in pieces))
    view = memoryview(sample)
    with FileIO(tensor.path) as file:
        for first, size in pieces:
            read_into(file, tensor.offset + first, view[:size])
            view = view[size:]
    return sample


def _places(nbytes: int) -> list[tuple[int, int]]:
    """Spread the samples evenly from the first byte to the last; a small tensor is read whole."""
    if nbytes <= _SAMPLES * _SAMPLE_BYTES:
        return [(0, nbytes)]
    last = nbytes - _SAMPLE_BYTES
    return [(i * last // (_SAMPLES - 1), _SAMPLE_BYTES) for i in range(_SAMPLES)]


def trained_files(folder: Path) -> dict[str, str]:
    """Hash the files that make up what was trained: weights and settings.

    Of an adapter's settings only what its base is called is left out, which publishing it changes.

    Args:
        folder: The folder of an adapter, or of a full fine-tune.

    Returns:
        The SHA-256 of each file, by name.
    """
    names = sorted(path.name for path in folder.iterdir())
    return {
        name: _content_sha256(folder / name)
        for name in names
        if name.endswith(".safetensors") or name in (ADAPTER_CONFIG, "config.json")
    }


def file_sha256(path: Path) -> str:
    """Hash a file without holding it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(path: Path) -> str:
    if path.name == ADAPTER_CONFIG:
        values = {key: value for key, value in read_json(path).items() if key not in _NAMES_OF_BASE}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return file_sha256(path)


def check_trained(folder: Path, base: Path, record: Mapping[str, Any]) -> None:
    """Check that base and trained files are those that training recorded.

    Args:
        folder: The folder of what was trained.
        base: The base's folder.
        record: `base_fingerprint`, and `files`, the hashes by name. Other files are not looked at.

    Raises:
        ExportError: One of them is another.
    """
    if record.get("base_fingerprint") != base_fingerprint(base):
        raise ExportError(
            f"{base} holds other weights than the base that {folder} was trained on. "
            "Export with that base: model.path=..."
        )
    check_files(folder, record)


def check_files(folder: Path, record: Mapping[str, Any]) -> None:
    """Check that trained files are those that training recorded, without a look at the base.

    Raises:
        ExportError: One of them is another.
    """
    for name, recorded in record.get("files", {}).items():
        path = folder / name
        if not path.is_file() or _content_sha256(path) != recorded:
            change = "has changed since" if path.is_file() else "is gone, unlike at"
            raise ExportError(
                f"{path} {change} the end of training. Put it back, or export it unproven with "
                "export.certificate=none."
            )
