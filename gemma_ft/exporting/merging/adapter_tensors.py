"""An adapter's file, sorted by what each tensor is, and checks of the numbers in it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, read_header, read_into

if TYPE_CHECKING:
    import torch

ADAPTER_FILE = "adapter_model.safetensors"

A, B, B_BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"

_PREFIX = "base_model.model."
_NAME = ".default"  # of the adapter: left in by savers that bypass PEFT's, and read by PEFT all the same
_PARTS = {
    **{part.replace(".", infix + "."): part for part in (A, B, B_BIAS) for infix in ("", _NAME)},
    **{part + infix: part for part in (EMBEDDING_A, EMBEDDING_B) for infix in ("", _NAME)},
    **{MAGNITUDE + infix: MAGNITUDE for infix in ("", ".weight", _NAME + ".weight")},
}
_PART = re.compile(rf"(?P<module>.+)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")
_ROWS = ".token_adapter.trainable_tokens_delta"
_WHOLE = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.(?P<place>token_adapter\.base_layer|base_layer|original_module|modules_to_save))?"
    r"\.(?P<leaf>weight|bias)"
)
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """The tensors of an adapter's file; modules are named as in the model."""

    path: Path
    lora: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    """The matrices and vectors of each module's LoRA, by part."""
    rows: dict[str, StoredTensor] = field(default_factory=dict)
    """The rows of each module that were trained one by one."""
    whole: dict[tuple[str, str], StoredTensor] = field(default_factory=dict)
    """Whole weights and biases, by name and by the place PEFT kept them in; the model's own place is ''."""

    def all(self) -> Iterator[StoredTensor]:
        """Iterate over every tensor of the file."""
        for parts in self.lora.values():
            yield from parts.values()
        yield from self.rows.values()
        yield from self.whole.values()


def read_adapter_tensors(folder: Path) -> AdapterTensors:
    """Read where each tensor of an adapter lies and what it is.

    Raises:
        ExportError: The file is not whole, or holds something that no LoRA has.
    """
    found = AdapterTensors(folder / ADAPTER_FILE)
    for name, stored in read_header(found.path).items():
        if stored.dtype not in FLOAT_NAMES:
            raise ExportError(
                f"{found.path}: {name} is stored as {stored.dtype}. Save it as F32, BF16 or F16."
            )
        if not (name.startswith(_PREFIX) and _sort(found, name.removeprefix(_PREFIX), stored)):
            raise ExportError(
                f"{found.path}: {name} is no tensor that a LoRA of PEFT has. "
                "Export the folder as PEFT saved it."
            )
    if not found.lora and not found.rows and not found.whole:
        raise ExportError(f"{found.path} holds no tensors, so there is nothing to merge. Save it again.")
    return found


def _sort(found: AdapterTensors, name: str, stored: StoredTensor) -> bool:
    if match := _PART.fullmatch(name):
        parts = found.lora.setdefault(match["module"], {})
        return parts.setdefault(_PARTS[match["part"]], stored) is stored
    if name.endswith(_ROWS):
        found.rows[name.removesuffix(_ROWS)] = stored
        return True
    if (match := _WHOLE.fullmatch(name)) and ".lora_" not in name:
        found.whole[f"{match['module']}.{match['leaf']}", match["place"] or ""] = stored
        return True
    return False


def check_shape(stored: StoredTensor, shape: tuple[int, ...], target: StoredTensor) -> None:
    """Check that a tensor has the shape that a tensor of the base asks for.

    Raises:
        ExportError: It has another one.
    """
    if stored.shape != shape:
        raise ExportError(
            f"{stored.path}: {stored.name} has shape {stored.shape}, but {target.name} of the base needs "
            f"{shape}. Export with the base it was trained on."
        )


def check_finite(stored: StoredTensor) -> None:
    """Check that a tensor holds neither NaN nor infinity.

    Raises:
        ExportError: It does.
    """
    import torch

    if not all(torch.isfinite(values).all() for values in _chunks(stored)):
        raise ExportError(
            f"{stored.path}: {stored.name} holds NaN or infinity: the training diverged. "
            "Export an earlier checkpoint, or train again with a lower learning rate."
        )


def same_values(copy: StoredTensor, original: StoredTensor) -> bool:
    """Say whether a copy holds an original's values, once it is in the original's number format."""
    import torch

    if copy.shape != original.shape or original.dtype not in FLOAT_NAMES:
        return False
    dtype = getattr(torch, FLOAT_NAMES[original.dtype])
    pairs = zip(_chunks(copy), _chunks(original), strict=True)
    return all(torch.equal(values.to(dtype), expected) for values, expected in pairs)


def _chunks(stored: StoredTensor) -> Iterator["torch.Tensor"]:
    """Read a tensor piece by piece; a piece is valid until the next one is asked for."""
    import torch

    dtype = getattr(torch, FLOAT_NAMES[stored.dtype])
    count = stored.nbytes // stored.item_bytes
    raw = bytearray(min(count, _CHUNK_ELEMENTS) * stored.item_bytes)
    with FileIO(stored.path) as file:
        for first in range(0, count, _CHUNK_ELEMENTS):
            size = min(_CHUNK_ELEMENTS, count - first)
            offset = stored.offset + first * stored.item_bytes
            read_into(file, offset, memoryview(raw)[: size * stored.item_bytes])
            yield torch.frombuffer(raw, dtype=dtype, count=size)
