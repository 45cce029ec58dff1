"""Whether weights quantised on a CPU and on a GPU are the same bytes: a certificate on a CPU rests on it."""

import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gpu_parts.training import Place

_NAME = "model.layers.0.mlp.up_proj.weight"
_FORMATS = (torch.bfloat16, torch.float16)
SHAPES = {
    "tiny": ((64, 256), (96, 192)),
    "2b": ((2048, 2048), (16384, 2048)),
    "7b": ((4096, 3072), (24576, 3072)),
}


def quantising(place: Place, name: str) -> dict[str, Any]:
    """Quantise the same tensors on the CPU and on the device, and count what differs.

    Of nf4: packed bytes, scales (with double quantisation their bytes, the scales of these, and their mean),
    values dequantised on each side, what the device makes of the CPU's bytes, and what our export reads.
    Of int8: values and scales.
    """
    nf4, int8 = {}, {}
    for title, values in tensors(place.shape):
        for double in (False, True):
            nf4[f"{title}{', double quantised' if double else ''}"] = compare_nf4(
                values, place.device, double
            )
        int8[title] = compare_int8(values, place.device)
    worst = {kind: sum(_differing(found)) for kind, found in (("nf4", nf4), ("int8", int8))}
    return {"differing_in_all": worst, "nf4": nf4, "int8": int8, "seed": 0}


def tensors(shape: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield titles and tensors: weights like a base's, and what lies at the edges."""
    small, large = SHAPES[shape]
    for (rows, columns), dtype in ((small, torch.bfloat16), (small, torch.float16), (large, torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(rows, columns, generator=generator) * 0.02
        yield f"normal {rows}x{columns} {str(dtype)[6:]}", normal.to(dtype)
    for dtype in _FORMATS:
        yield f"edges {str(dtype)[6:]}", edges(dtype)


def edges(dtype: torch.dtype) -> torch.Tensor:
    """Return 256 columns of zeros, of the largest and smallest values, ties between codes, outliers."""
    from bitsandbytes.functional import get_4bit_type

    codes = get_4bit_type("nf4", device="cpu")
    ties = (codes[1:] + codes[:-1]) / 2
    info = torch.finfo(dtype)
    rows = torch.zeros(12, 256)
    rows[1] = -0.0
    rows[2], rows[3] = info.max, info.tiny
    rows[4] = info.smallest_normal / 2  # below what has all its digits
    for row, scale in ((5, 1.0), (6, 0.037), (7, 2.0**-9)):  # the first value is each block's scale
        rows[row] = torch.cat([torch.ones(1), ties, torch.nextafter(ties, torch.tensor(9.0)), -ties]).repeat(
            6
        )[:256]
        rows[row, ::64] = 1.0
        rows[row] *= scale
    rows[8] = torch.linspace(-1, 1, 256)
    rows[9] = 1e-4
    rows[9, 17] = 1000.0
    rows[10, 3] = -1.0
    rows[11] = torch.randn(256, generator=torch.Generator().manual_seed(1))
    return rows.to(dtype)


def compare_nf4(values: torch.Tensor, device: str, double: bool) -> dict[str, Any]:
    """Count the differing bytes and values of one tensor."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    settings = {"blocksize": 64, "compress_statistics": double, "quant_type": "nf4"}
    packed, state = quantize_4bit(values, **settings)
    packed_there, state_there = quantize_4bit(values.to(device), **settings)
    here = dequantize_4bit(packed, state)
    there = dequantize_4bit(packed_there, state_there).cpu()
    found = {
        "packed": differing(packed, packed_there),
        "scales": differing(state.absmax, state_there.absmax),
        "dequantised": differing(here, there),
        "exported": differing(_as_exported(values, double), there),
    }
    if double:
        found["scales_of_scales"] = differing(state.state2.absmax, state_there.state2.absmax)
        found["mean"] = differing(state.offset, state_there.offset)
    state.to(device)
    found["dequantised_there_from_here"] = differing(here, dequantize_4bit(packed.to(device), state))
    return found


def compare_int8(values: torch.Tensor, device: str) -> dict[str, Any]:
    """Count the differing values and scales of one tensor."""
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    half = values.half()
    half = half.clamp(-torch.finfo(torch.float16).max, torch.finfo(torch.float16).max)
    bytes_here, scales_here, _ = int8_vectorwise_quant(half)
    bytes_there, scales_there, _ = int8_vectorwise_quant(half.to(device))
    return {
        "values": differing(bytes_here, bytes_there),
        "scales": differing(scales_here, scales_there),
        "dequantised": differing(
            int8_vectorwise_dequant(bytes_here, scales_here),
            int8_vectorwise_dequant(bytes_there, scales_there),
        ),
    }


def _as_exported(values: torch.Tensor, double: bool) -> torch.Tensor:
    """Read a tensor from a file as our export does, on the CPU."""
    from safetensors.torch import save_file

    from gemma_ft.config.schema import QuantizationMethod
    from gemma_ft.exporting.merging.storage import TrainedStorage, load_as_trained
    from gemma_ft.exporting.merging.tensor_files import read_checkpoint

    storage = TrainedStorage(
        method=QuantizationMethod.nf4, double_quant=double, dtype=str(values.dtype).removeprefix("torch.")
    )
    with TemporaryDirectory() as name:
        save_file({_NAME: values}, Path(name) / "model.safetensors", metadata={"format": "pt"})
        out = torch.empty_like(values)
        load_as_trained(read_checkpoint(Path(name))[_NAME], storage, out)
    return out


def differing(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """Count the elements whose bits differ, and the largest difference of their values."""
    one, other = one.detach().cpu().reshape(-1), other.detach().cpu().reshape(-1)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[one.element_size()]
    differ = one.view(bits) != other.view(bits)
    found: dict[str, Any] = {"of": one.numel(), "differ": int(differ.sum())}
    if found["differ"]:
        largest = float((one.double() - other.double())[differ].abs().max())
        found["largest"] = largest if math.isfinite(largest) else str(largest)
    return found


def _differing(found: dict[str, Any]) -> Iterator[int]:
    for entry in found.values():
        if "differ" in entry:
            yield entry["differ"]
        else:
            yield from _differing(entry)
