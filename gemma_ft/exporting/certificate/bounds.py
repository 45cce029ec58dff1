"""How far a right export may be from the trained model, by what was merged and the format it is stored in.

The measure is the mean Kullback-Leibler divergence, in nats a token, from the model that was merged (what was
merged onto, with the adapter unmerged on it) to the exported folder, both computed in float32. All that a
right export adds is the rounding of the changed weights to their stored format. That is a fraction of what
one bf16 computation of the same model adds, which is measured beside it as the noise floor: so the bound is
a factor times that floor, and holds for models of any size and certainty.

What `benchmarks/certificate.py` found for divergence / floor, over seeded Gemma 1, 2 and 3 shapes with strong
LoRA and DoRA adapters, and quickstart runs trained unquantised, in int8 and in nf4:

    right export stored in bf16, merged onto any base   0.08 to 0.38
    right export stored in fp16                         0.003 to 0.005
    right export stored in float32                      below 1e-8
    adapter scaled by 1.05                              12 to 76
    rows of one v_proj shuffled, adapter swapped        above 500
    nf4: original base merged where trained was asked   68 to 222
    int8: the same                                      0.6 to 0.7

The last one is below any honest bound, since int8 weights differ from bf16 ones by about a rounding: the
comparison of every tensor with the merge (`merging/verify.py`) finds it.
"""

from collections.abc import Iterable, Mapping

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.merging.storage import TrainedStorage

_FACTORS: Mapping[str, float] = {"BF16": 2.0, "F16": 0.05, "F32": 1e-4}
"""Between the right exports and the nearest fault that the divergence can see, in the middle of the orders of
magnitude for bf16, nearer to the right ones for the others."""
_SMALLEST = 1e-9
"""The rounding of the divergence itself, for models so certain that even their floor vanishes."""


def kl_bound(noise: float, stored: Iterable[str]) -> float:
    """Return the largest divergence of a right export.

    Args:
        noise: The noise floor: the divergence from the export in float32 to itself in bf16.
        stored: Number formats, in safetensors' words, of the tensors that were merged; the coarsest counts.
    """
    return max((_FACTORS[dtype] for dtype in stored), default=_FACTORS["F32"]) * noise + _SMALLEST


def why_not_gated(merged: TrainedStorage | None, trained: TrainedStorage) -> str:
    """Say why the distance to the model as training computed it is reported without a bound."""
    if merged is None:
        return "merged onto the original base: the distance is that between the two bases"
    assert trained.method is QuantizationMethod.int8
    return "int8 training quantises activations too, which no checkpoint holds"
