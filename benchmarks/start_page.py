"""The tables and the plot of `start.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_page import SHORT_HEADS
from parts.plots import COLOURS, load_pyplot, save
from parts.results import describe_in_words, markdown_table
from parts.turns import significant, spread

TITLES = {"answers": "To the answer", "first step": "To the first step"}
_PAIRS = {
    "answers": [("gemma_ft --help", "trl sft --help"), ("gemma_ft a config error", "trl sft --help")],
    "first step": [("gemma_ft LoRA", "trl sft LoRA")],
}
QUICKSTART = "gemma_ft quickstart"


def page(parts: Mapping[str, Any]) -> str:
    """Return the page of all parts that were measured."""
    text = "# Starting\n\n" + markdown_table(SHORT_HEADS, short_rows(parts))
    for name in [name for name in TITLES if name in parts]:
        part = parts[name]
        repeats = len(next(iter(part["runs"].values())))
        text += f"\n## {TITLES[name]}\n\n{describe_in_words(part)}\n"
        text += f"Medians of {repeats}; memory is what is resident in the largest process.\n\n"
        text += markdown_table(_HEADS, _rows(part["runs"]))
    return text


def short_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """Return what matters most: the fastest run of ours beside TRL's fastest, in seconds."""
    rows = []
    for name in [name for name in _PAIRS if name in parts]:
        runs = parts[name]["runs"]
        for ours, other in [pair for pair in _PAIRS[name] if set(pair) <= set(runs)]:
            fastest = [min(run["seconds"] for run in runs[side]) for side in (ours, other)]
            cells = [f"{significant(seconds):g} s" for seconds in fastest]
            faster = f"{significant(fastest[1] / fastest[0], 2):g}x as fast"
            rows.append([f"{TITLES[name].lower()}: {ours}, {other}", *cells, faster])
        if QUICKSTART in runs:
            seconds = min(run["seconds"] for run in runs[QUICKSTART])
            rows.append([f"{TITLES[name].lower()}: {QUICKSTART}", f"{significant(seconds):g} s", "", ""])
    return rows


_HEADS = ("", "seconds", "lowest", "highest", "CPU seconds", "MiB")


def _rows(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[list[str]]:
    rows = []
    for side, found in runs.items():
        seconds = spread([run["seconds"] for run in found])
        rest = [spread([run[name] for run in found])["median"] for name in ("cpu_seconds", "peak_mib")]
        times = [seconds[end] for end in ("median", "low", "high")]
        rows.append([side, *(f"{value:g}" for value in (*times, *rest))])
    return rows


def draw(parts: Mapping[str, Any], folder: Path) -> None:
    """Draw a bar a command, for each part."""
    known = [name for name in TITLES if name in parts]
    heights = [len(parts[name]["runs"]) for name in known]
    size = (8, 1.0 + 0.36 * sum(heights))
    figure, axes = load_pyplot().subplots(
        len(known), 1, figsize=size, layout="constrained", squeeze=False, height_ratios=heights
    )
    for (one,), name in zip(axes, known, strict=True):
        runs = parts[name]["runs"]
        spreads = [spread([run["seconds"] for run in found]) for found in runs.values()]
        medians = [found["median"] for found in spreads]
        reach = [[s["median"] - s["low"] for s in spreads], [s["high"] - s["median"] for s in spreads]]
        colours = [COLOURS[0] if side.startswith("gemma_ft") else COLOURS[1] for side in runs]
        bars = one.barh(range(len(runs)), medians, xerr=reach, color=colours, capsize=2)
        one.bar_label(bars, labels=[f"{median:.3g}" for median in medians], padding=6, fontsize=8)
        one.set_yticks(range(len(runs)), list(runs))
        one.invert_yaxis()
        one.set_xlabel("seconds")
        one.set_title(TITLES[name].lower())
    save(figure, folder / "start.svg")
