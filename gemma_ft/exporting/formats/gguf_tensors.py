"""A checkpoint's tensors in GGUF's names and number formats, row block by row block."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from io import FileIO
from typing import TYPE_CHECKING

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, read_into

if TYPE_CHECKING:
    import numpy
    import torch
    from gguf import GGMLQuantizationType

_ELEMENTS = 1 << 18  # of a block; larger ones are slower
_BLOCK = 32  # weights that share a scale in Q8_0
_FP16_MAX = 65504.0
_NORM = "norm.weight"


class Kind(StrEnum):
    """Number format of a GGUF file's matrices, as llama.cpp names it."""

    f16 = "F16"
    bf16 = "BF16"
    q8_0 = "Q8_0"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the file to be written."""

    name: str
    """GGUF's name of it."""
    source: StoredTensor
    type: "GGMLQuantizationType"
    nbytes: int
    """In the file."""

    @property
    def shift(self) -> int:
        """Return what is added: llama.cpp multiplies by a norm's weight, where Gemma does by 1 + weight."""
        return 1 if self.source.name.endswith(_NORM) else 0


def plan_tensors(
    tensors: Mapping[str, StoredTensor], architecture: str, layers: int, kind: Kind
) -> list[PlannedTensor]:
    """Find name, number format and size of each tensor; norms stay in fp32.

    Raises:
        ExportError: The architecture has no such tensor, or it does not fit the number format.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, layers)
    return [_plan_tensor(names.get_name(name, (".weight",)), tensors[name], kind) for name in tensors]


def _plan_tensor(name: str | None, source: StoredTensor, kind: Kind) -> PlannedTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if name is None or source.dtype not in FLOAT_NAMES:
        raise ExportError(
            f"{source.path}: {source.name} ({source.dtype}) has no place in a GGUF file of its family. "
            "Leave the gguf formats out of export.formats."
        )
    if kind is Kind.q8_0 and len(source.shape) > 1 and source.shape[-1] % _BLOCK:
        raise ExportError(
            f"export.formats=[gguf_q8_0] needs rows of a multiple of {_BLOCK} weights, and {source.name} "
            f"has {source.shape[-1]}. Use gguf_bf16 or gguf_f16."
        )
    stored = GGMLQuantizationType.F32 if len(source.shape) == 1 else GGMLQuantizationType[kind.value]
    per_block, block_bytes = GGML_QUANT_SIZES[stored]
    elements = source.nbytes // source.item_bytes
    return PlannedTensor(name, source, stored, elements // per_block * block_bytes)


def convert_tensor(planned: PlannedTensor) -> Iterator["numpy.ndarray"]:
    """Yield a tensor's bytes as the GGUF file has them, block by block in the order of the file.

    Raises:
        ExportError: A value is beyond the number format.
    """
    for values_RI in read_rows(planned):
        yield _convert(planned, values_RI)


def read_rows(planned: PlannedTensor) -> Iterator["torch.Tensor"]:
    """Yield whole rows of the source in fp32, as llama.cpp means them: a norm's with 1 added."""
    import torch

    source = planned.source
    dtype = getattr(torch, FLOAT_NAMES[source.dtype])
    width = source.shape[-1]
    step = max(1, _ELEMENTS // width) * width * source.item_bytes
    with FileIO(source.path) as file:
        for start in range(0, source.nbytes, step):
            raw = bytearray(min(step, source.nbytes - start))
            read_into(file, source.offset + start, memoryview(raw))
            values_RI = torch.frombuffer(raw, dtype=dtype).float().view(-1, width)
            yield values_RI + 1 if planned.shift else values_RI


def _convert(planned: PlannedTensor, values_RI: "torch.Tensor") -> "numpy.ndarray":
    import gguf
    import torch

    kinds = gguf.GGMLQuantizationType
    limits = {kinds.F16: _FP16_MAX, kinds.Q8_0: 127 * _FP16_MAX}  # Q8_0's scales are fp16
    largest = values_RI.abs().max().item()
    if not largest <= limits.get(planned.type, torch.finfo(torch.float32).max):
        raise ExportError(
            f"export.formats=[gguf_{planned.type.name.lower()}] cannot hold {planned.source.name}, "
            f"which reaches {largest:.4g}; fp16 ends at {_FP16_MAX:.0f}. Use gguf_bf16."
        )
    if planned.type == kinds.BF16:
        return values_RI.bfloat16().view(torch.uint8).numpy()
    if planned.type == kinds.F16:
        return values_RI.half().view(torch.uint8).numpy()
    block: numpy.ndarray = gguf.quants.quantize(values_RI.numpy(), planned.type)
    return block
