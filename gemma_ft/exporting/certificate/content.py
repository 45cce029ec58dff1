"""What a certificate says: the measured figures, in words that claim nothing else."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import isfinite
from typing import Any

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.certificate.comparison import Comparison, trained_whole
from gemma_ft.exporting.certificate.rows import Source
from gemma_ft.exporting.merging.merge import MergePlan
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.verify import Exactness

SCHEMA = 1
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
_SOURCES = {"held_out": "held-out rows of the run's data", "training": "rows of the run's training data"}


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a certificate rests on."""

    plan: MergePlan
    trained_storage: TrainedStorage | None
    source: Source
    exactness: Exactness
    comparison: Comparison
    bound: float
    bound_as_trained: float | None
    """For the model as training computed it, where that has one."""
    rounding: float | None
    """What rounding alone costs, in nats a token, where that had to be measured."""
    stops: list[int]

    @property
    def base(self) -> str:
        """Return `export.base` as it was carried out."""
        same = self.trained_storage is None or self.plan.storage is not None
        return "trained" if same else "original"


def describe(findings: Findings) -> dict[str, Any]:
    """Build the content of certificate.json."""
    found, exact = findings.comparison, findings.exactness
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "compared": f"{_merged(findings)}, against the exported folder re-loaded from disk, both in float32",
        "base": findings.base,
        "quantization": _quantization(findings.trained_storage),
        "rows": {
            "source": findings.source,
            "count": found.rows,
            "predicted_tokens": found.tokens,
            "learned_tokens": found.learned_tokens,
        },
        "difference": asdict(found.difference)
        | {"kl_bound": findings.bound, "kl_over_bound": found.difference.kl_mean / findings.bound},
        "noise_floor": {"compared": f"{_noisy(findings)} in float32 against itself in bfloat16"}
        | asdict(found.noise),
        "loss": {
            "compared": f"{_reference(findings)}, against the exported folder",
            "trained": found.loss_trained,
            "exported": found.loss_exported,
        },
        "tensors": {
            "changed": exact.changed,
            "unchanged": exact.unchanged,
            "differing": len(exact.differing),
        },
        "greedy": {"compared": f"what the exported folder says, by {_reference(findings)}"}
        | asdict(found.greedy),
        "stop": {
            "tokens": findings.stops,
            "generation_stops_at_each": True,
            "likeliest_at_ends_of_answers": asdict(found.ends),
        },
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    if findings.rounding is not None:
        content["rounding"] = {
            "compared": "the trained model against itself merged by PEFT and rounded to the stored formats",
            "kl_mean": findings.rounding,
        }
    if found.as_trained is not None:
        content["as_trained"] = {
            "compared": f"{_as_trained(findings)}, against the exported folder",
            "kl_bound": findings.bound_as_trained,
            **_finite(asdict(found.as_trained)),
        }
    return content


def summarize(findings: Findings) -> list[str]:
    """Build the lines for the model card."""
    found, exact = findings.comparison, findings.exactness
    greedy, rows = found.greedy, _SOURCES[findings.source]
    lines = [
        f"Measured on {found.rows} {rows} ({found.tokens} tokens): {_merged(findings)}, against this "
        "checkpoint.",
        f"KL divergence {found.difference.kl_mean:.1e} nats a token (bound {findings.bound:.1e}; "
        f"{_noisy(findings)} in bfloat16 instead of float32: {found.noise.kl_mean:.1e}).",
        f"Loss {found.loss_trained:.4f} as trained, {found.loss_exported:.4f} exported. Greedy tokens equal: "
        f"{greedy.equal} of {greedy.tokens} over {greedy.prompts} prompts{_by_whom(findings)}.",
        f"{exact.changed} tensors changed and {exact.unchanged} equal to the base's, each as computed. "
        f"Generation stops at {', '.join(map(str, findings.stops))}.",
    ]
    if found.as_trained is not None:
        limit = findings.bound_as_trained
        gate = "reported only: another base was merged onto" if limit is None else f"bound {limit:.1e}"
        lines.append(f"KL divergence from {_as_trained(findings)}: {found.as_trained.kl_mean:.1e} ({gate}).")
    return lines


def _reference(findings: Findings) -> str:
    """Name the model that losses and greedy answers are compared with: the one that was trained."""
    return _merged(findings) if findings.comparison.as_trained is None else _as_trained(findings)


def _by_whom(findings: Findings) -> str:
    if findings.comparison.as_trained is None:
        return ""
    return f" (both against {_as_trained(findings)})"


def _noisy(findings: Findings) -> str:
    return "the trained model" if trained_whole(findings.plan) else "the exported folder"


def _merged(findings: Findings) -> str:
    if trained_whole(findings.plan):
        return "the trained model"
    storage = findings.plan.storage
    if storage is None:
        held = "the base" if findings.trained_storage is None else "the original base"
    else:
        held = f"the base as training held it ({storage.method.value}, dequantised)"
    return f"{held} with the adapter on it, unmerged"


def _as_trained(findings: Findings) -> str:
    storage = findings.trained_storage
    assert storage is not None
    int8 = storage.method is QuantizationMethod.int8
    arithmetic = (
        "by bitsandbytes' own int8 products, which quantise activations too" if int8 else "dequantised"
    )
    return f"the base in {storage.method.value} as training held it ({arithmetic}), with the adapter unmerged"


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    """Leave out what JSON cannot hold."""
    return {name: value if isfinite(value) else None for name, value in figures.items()}


def _quantization(storage: TrainedStorage | None) -> dict[str, Any]:
    if storage is None:
        return {"method": "none"}
    kind: dict[str, Any] = {"method": storage.method.value, "dtype": storage.dtype}
    return kind | ({"double_quant": storage.double_quant} if storage.method.value == "nf4" else {})
