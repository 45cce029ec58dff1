"""How a step's cost grows: over the length of rows, the vocabulary and the size of the model."""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parts import plots, results, turns
from parts.kept import keep_part
from parts.results import describe_in_words, markdown_table

from step_parts.cases import SHAPES, Case, Rows
from step_parts.making import Place
from step_parts.measuring import compare, measure, measure_loaded
from step_parts.sides import OURS, TRL, versions_of_side

_TINY = SHAPES["tiny, 256k words"]


def _filling(length: int) -> Rows:
    """Return rows whose question takes half of a length and whose answer is cut at its end."""
    return Rows(words=(max(length // 2, 40),) * 2, count=60)


_BASE = Case(
    says="",
    shape="tiny, 256k words",
    rows=_filling(512),
    max_length=512,
    micro_batch=1,
    accumulation=2,
    steps=3,
)
_QUICK_STEPS = 20
"""Where a step takes less than a second or two on either side, which three would leave to chance."""
_SIZES = {
    "hidden 128, 2 layers": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2},
    "hidden 256, 3 layers": {},
    "hidden 384, 6 layers": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
    "hidden 640, 12 layers": {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 12},
}
_VOCABULARIES = (2048, 16_384, 65_536, 256_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Cases along one quantity."""

    label: str
    cases: dict[float, Case]


def count_parameters(sizes: dict[str, Any]) -> int:
    """Return how many weights a Gemma 1 of some sizes has, tied ones once."""
    hidden, inner, layers = (sizes[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    queries, keys = (sizes["head_dim"] * sizes[f"num_{n}_heads"] for n in ("attention", "key_value"))
    block = hidden * (3 * inner + 2 * queries + 2 * keys + 2)
    return int(sizes["vocab_size"] * hidden + layers * block + hidden)


def _shape(sizes: dict[str, Any]) -> Case:
    name = f"growth {sizes['hidden_size']} {sizes['vocab_size']}"
    SHAPES[name] = sizes
    steps = _BASE.steps if sizes["vocab_size"] > _VOCABULARIES[1] else _QUICK_STEPS
    return replace(_BASE, shape=name, steps=steps)


CURVES = {
    "length": Curve(
        label="tokens of a row (256,000 words, hidden 256)",
        cases={
            length: replace(
                _BASE,
                max_length=length,
                rows=_filling(length),
                steps=_QUICK_STEPS if length < 256 else _BASE.steps,
            )
            for length in (64, 256, 1024, 2048)
        },
    ),
    "vocabulary": Curve(
        label="words of the vocabulary (rows of 512 tokens, hidden 256)",
        cases={words: _shape(_TINY | {"vocab_size": words}) for words in _VOCABULARIES},
    ),
    "model size": Curve(
        label="million parameters (256,000 words)",
        cases={
            round(count_parameters(_TINY | size) / 1e6, 1): _shape(_TINY | size) for size in _SIZES.values()
        },
    ),
}


def measure_growth(names: list[str], place: Place, asked: argparse.Namespace) -> None:
    """Measure the curves that are asked for, ours and TRL's, each into the results as soon as it ends."""
    sides = [name for name in names if name in (OURS, TRL)]
    for name in asked.growth:
        points = {}
        for x, case in CURVES[name].cases.items():
            print(f"{name} {x:g}", file=sys.stderr, flush=True)
            points[f"{x:g}"] = _measure_point(case, sides, place, asked)
        versions = {side: versions_of_side(side, asked.peers) for side in sides}
        _keep(name, points, versions, asked)


def _measure_point(case: Case, sides: list[str], place: Place, asked: argparse.Namespace) -> dict[str, Any]:
    loaded = {side: measure_loaded(side, case.shape, place, asked.peers) for side in sides}
    steps = asked.steps or case.steps
    runs = turns.take_turns(
        {side: lambda _, side=side: measure(side, case, steps, place, asked.peers) for side in sides},
        asked.repeats,
        say=lambda line: None,
    )
    return compare(runs, loaded)


def _keep(name: str, points: dict[str, Any], versions: dict[str, Any], asked: argparse.Namespace) -> None:
    part = {"machine": results.describe_machine(), "versions": versions, "points": points}
    kept = keep_part("step_growth", name, part, page, asked.results)
    if not asked.no_plots:
        draw(kept, asked.results)


def page(kept: dict[str, Any]) -> str:
    """Return the tables of all curves."""
    text = "# How a training step's cost grows\n\n"
    text += "Written by `python benchmarks/step.py --growth`; LoRA, fp32, 1 x 2 rows.\n\n"
    text += "\n".join(dict.fromkeys(describe_in_words(curve) for curve in kept.values()))
    for name, curve in kept.items():
        rows = []
        for x, point in curve["points"].items():
            for side, figures in point["sides"].items():
                speed, memory = figures["tokens_a_second"], figures["mib_above_loaded"]
                rows.append([f"{float(x):,g}", side, f"{speed['median']:,.0f}", f"{memory['median']:,.0f}"])
        heads = [CURVES[name].label, "", "tokens/s", "MiB above the model"]
        text += f"\n## {name}\n\n{markdown_table(heads, rows)}"
    return text


def draw(kept: dict[str, Any], folder: Path) -> None:
    """Draw a row of panels for tokens a second and one for memory, a panel a curve."""
    pyplot = plots.load_pyplot()
    curves = kept
    figure, panels = pyplot.subplots(
        2, len(curves), figsize=(3.8 * len(curves), 6), squeeze=False, layout="constrained"
    )
    rows = (("tokens_a_second", "tokens a second"), ("mib_above_loaded", "MiB above the loaded model"))
    for column, (name, curve) in enumerate(curves.items()):
        points = curve["points"]
        for row, (key, label) in enumerate(rows):
            axes = panels[row][column]
            sides = {
                side: [point["sides"][side][key] for point in points.values()]
                for side in next(iter(points.values()))["sides"]
            }
            plots.draw_curves(axes, [float(x) for x in points], sides)
            axes.set_xlabel(CURVES[name].label)
            axes.set_ylabel(label)
    plots.save(figure, folder / "step_growth.svg")
