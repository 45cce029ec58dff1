"""fp32 matrix products on a CPU: by the library that torch takes, or by oneDNN where that is faster.

torch takes MKL, which leaves AVX-512 of AMD's processors unused. It takes oneDNN where its numbers may be
rounded to bf16, which oneDNN does only where the processor multiplies bf16 faster, with AMX: elsewhere it
computes in fp32. So this is allowed only where the products have been found to be as exact as before.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gemma_ft.errors import first_line

_CHECKED_ROWS = (16, 64)
_TIMED_ROWS = 256
_LONGEST = 2048
"""Products are tried in no larger sizes: what libraries do with them does not change any more."""
_REPEATS = 3
"""Timed runs, of which the fastest counts: what disturbs only ever slows down."""
_MORE_THAN_BEFORE = 4.0
_ROUNDING = 1e-6
"""oneDNN may be this many times as far from the exact products as torch's own choice, and so much beside."""
_FEWEST_TOGETHER = 16
_STEPS_OF_DOUBLING = 8


@dataclass(frozen=True, order=True, slots=True)
class Weight:
    """A linear layer's weight, as often as a model has it."""

    outputs: int
    inputs: int
    count: int = 1


def round_up(rows: int) -> int:
    """Round a number of rows up to one of few: oneDNN keeps some 100 KB to 2 MB for every shape it has met.

    They are multiples of 16, and above 128 there are eight to each doubling.
    """
    step = max(_FEWEST_TOGETHER, (1 << max(rows - 1, 0).bit_length()) // (2 * _STEPS_OF_DOUBLING))
    return -(-rows // step) * step


def has_onednn() -> bool:
    """Tell whether this torch has oneDNN, and the setting that sends fp32 products there (torch 2.9)."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and hasattr(torch.backends.mkldnn, "matmul")


@contextmanager
def by_onednn(wanted: bool = True) -> Iterator[None]:
    """Have oneDNN multiply, in this process; without `wanted` all stays as it is."""
    if not wanted:
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def find_fault(weights: Sequence[Weight]) -> str:
    """Say how far oneDNN's products are off, forward and backward; empty where they are as exact."""
    try:
        return _find_error(weights)
    except RuntimeError as error:  # a library may fail in any way where it was never run
        return f"it does not multiply: {first_line(error)}"


def _find_error(weights: Sequence[Weight]) -> str:
    for weight in weights:
        for rows in _CHECKED_ROWS:
            factors = _draw(weight, rows)
            exact = _products(*(factor.double() for factor in factors))
            before = _errors(_products(*factors), exact)
            with by_onednn():
                found = _errors(_products(*factors), exact)
            for plain, own in zip(before, found, strict=True):
                if not own <= _MORE_THAN_BEFORE * plain + _ROUNDING:
                    return f"its products are {own:.2g} off (relative; torch's own choice {plain:.2g})"
    return ""


def time_products(weights: Sequence[Weight], rows: int, *, onednn: bool) -> float:
    """Return the seconds that rows take through all weights, forward and backward, in the sizes tried."""
    total = 0.0
    with by_onednn(onednn):
        for weight in weights:
            factors = _draw(weight, min(rows, _TIMED_ROWS))
            _products(*factors)  # the first call prepares
            seconds = []
            for _ in range(_REPEATS):
                begin = time.perf_counter()
                _products(*factors)
                seconds.append(time.perf_counter() - begin)
            total += weight.count * min(seconds)
    return total


def _draw(weight: Weight, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)  # the run's own random state stays as it is
    outputs, inputs = min(weight.outputs, _LONGEST), min(weight.inputs, _LONGEST)
    sizes = ((outputs, inputs), (rows, inputs), (rows, outputs))
    weight_OI, hidden_RI, grad_RO = (torch.randn(size, generator=source) for size in sizes)
    return weight_OI, hidden_RI, grad_RO


def _products(
    weight_OI: torch.Tensor, hidden_RI: torch.Tensor, grad_RO: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.mm(hidden_RI, weight_OI.T), torch.mm(grad_RO, weight_OI)


def _errors(found: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
