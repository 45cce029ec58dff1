"""How far a right export may be from the trained model, by what was merged and the format it is stored in.

The measure is the mean Kullback-Leibler divergence, in nats a token, from the model that was merged (what was
merged onto, with the adapter unmerged on it) to the exported folder, both computed in float32. All that a
right export adds is the rounding of the changed weights to their stored format. That is a fraction of what
one bf16 computation of the same model adds, which is measured beside it as the noise floor: so the bound is
a factor times that floor, and holds for models of any size and certainty.

What `benchmarks/certificate.py bounds` found for divergence / floor, over seeded Gemma 1, 2 and 3 shapes from
2 layers to those of Gemma 3 270M with strong LoRA and DoRA adapters, and quickstart runs trained unquantised,
in int8 and in nf4:

    right export stored in bf16, merged onto any base   0.08 to 0.5
    right export stored in fp16                         0.003 to 0.006
    right export stored in float32                      below 1e-8
    adapter scaled by 1.05                              12 to 81
    rows of one v_proj shuffled, another adapter        above 500
    nf4: original base merged where trained was asked   68 to 250
    int8: the same                                      0.5 to 3.5

The last one is below the bound for small models, since int8 weights differ from bf16 ones by about a
rounding: the comparison of every tensor with the merge (`merging/verify.py`) finds it.

A full fine-tune has float32 weights that the export rounds, all of them: small steps can vanish in that, and
the export is as far from the trained model as that is from itself once it is held in bf16. That is its floor
(right exports after 1 to 40 steps: 0 to 1.01 floors); that nothing but rounding happened is for the exactness
check to say.

Small coherent steps of an adapter can vanish in the rounding too (rank 64 after 40 steps at 5e-5 onto a bf16
base: 8 floors, and the loss tells), and few tokens of a strange model can carry the mean. So beyond the bound
rounding is measured by itself, and a right export is at exactly 1 of it.

int8 training quantises activations too, which no checkpoint holds. The divergence from the model as it
computes was 0.7 to 1 floors for 2 layers, 1.3 to 1.6 for 3 and 2.9 for 18, and grows with outliers in large
models: it has a bound of its own, which keeps other models out and no more.
"""

from collections.abc import Iterable, Mapping

_FACTORS: Mapping[str, float] = {"BF16": 2.0, "F16": 0.05, "F32": 1e-4}
"""For bf16 in the middle between right exports and the nearest fault that the divergence can see, by orders
of magnitude; for the others nearer to the right ones."""
_INT8_FACTOR = 200.0
_ROUNDING_FACTOR = 1.1
_SMALLEST = 1e-9
"""The rounding of the divergence itself, for models so certain that even their floor vanishes."""


def kl_bound(noise: float, stored: Iterable[str]) -> float:
    """Return the largest divergence of a right export.

    Args:
        noise: The noise floor: the divergence from a model in float32 to itself in bf16.
        stored: Number formats, in safetensors' words, of the tensors that were merged; the coarsest counts.
    """
    return max((_FACTORS[dtype] for dtype in stored), default=_FACTORS["F32"]) * noise + _SMALLEST


def rounding_bound(rounding: float) -> float:
    """Return the largest divergence of a right export whose rounding was measured by itself.

    Args:
        rounding: The divergence from the trained model to itself, merged by PEFT and rounded.
    """
    return _ROUNDING_FACTOR * rounding + _SMALLEST


def int8_bound(noise: float) -> float:
    """Return the largest divergence of a right export from the model as int8 training computes it.

    Args:
        noise: The noise floor.
    """
    return _INT8_FACTOR * noise + _SMALLEST
