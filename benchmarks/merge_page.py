"""The tables and the plot of `merge.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_page import SHORT_HEADS, plain_ticks
from parts.plots import draw_curves, load_pyplot, save
from parts.results import describe_in_words, markdown_table
from parts.turns import ratios, significant, spread

OURS, PEFT, COPY, COPY_SYNCED = "gemma_ft", "PEFT", "cp", "cp and sync"

Runs = Mapping[str, Sequence[Mapping[str, float]]]


def page(parts: Mapping[str, Any]) -> str:
    """Return the page of all shapes that were measured."""
    text = "# Merging an adapter\n\n" + markdown_table(SHORT_HEADS, short_rows(parts))
    for shape, part in by_size(parts).items():
        text += f"\n## {shape}: {gigabytes(part)} in bf16\n\n{describe_in_words(part)}\n"
        text += markdown_table(_HEADS, _rows(part["runs"]))
        text += "".join(f"\n{side} is left out: {why}.\n" for side, why in part.get("left_out", {}).items())
    return text


def by_size(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes, the smallest first."""
    return dict(sorted(parts.items(), key=lambda item: item[1]["bytes"]))


def gigabytes(part: Mapping[str, Any]) -> str:
    """Return the size of a checkpoint."""
    return f"{part['bytes'] / 1e9:.2f} GB"


def short_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """Return what matters most: the largest shape that each other side took, the fastest run of each."""
    rows = []
    for other in (PEFT, COPY_SYNCED, COPY):
        known = {name: part for name, part in by_size(parts).items() if {OURS, other} <= set(part["runs"])}
        if not known:
            continue
        shape, part = list(known.items())[-1]
        runs, what = part["runs"], f"merging {shape} ({gigabytes(part)})"
        fastest = [min(run["seconds"] for run in runs[side]) for side in (OURS, other)]
        cells = [f"{significant(seconds):g} s" for seconds in fastest]
        rows.append([f"{what}, {other}", *cells, f"{significant(fastest[1] / fastest[0], 2):g}x as fast"])
        if other == PEFT:
            cells = [f"{_median(runs, side, 'peak_mib'):,.0f} MiB" for side in (OURS, other)]
            share = _median(runs, OURS, "peak_mib") / _median(runs, other, "peak_mib")
            rows.append([f"{what}, memory at its peak, {other}", *cells, f"{share:.1%} of it"])
    return rows


def times(runs: Runs, side: str, other: str, name: str) -> str:
    """Return the median of one side's figure in multiples of the other's in the same repeat."""
    found = ratios([run[name] for run in runs[side]], [run[name] for run in runs[other]])
    return f"{significant(found['median'], 2):g}x"


def _median(runs: Runs, side: str, name: str) -> float:
    return spread([run[name] for run in runs[side]])["median"]


_HEADS = (
    "",
    "repeats",
    "seconds",
    "lowest",
    "highest",
    "after imports",
    "CPU seconds",
    "peak MiB",
    "times cp",
)


def _rows(runs: Runs) -> list[list[str]]:
    rows = []
    for side, found in runs.items():
        seconds = spread([run["seconds"] for run in found])
        cells = [str(len(found)), *(f"{seconds[end]:g}" for end in ("median", "low", "high"))]
        merged = "peak_mib" in found[0]
        cells.append(f"{_median(runs, side, 'seconds_after_imports'):g}" if merged else "")
        cells.append(f"{_median(runs, side, 'cpu_seconds'):g}")
        cells.append(f"{_median(runs, side, 'peak_mib'):,.0f}" if merged else "")
        beside = COPY in runs and side != COPY and len(found) == len(runs[COPY])
        cells.append(times(runs, side, COPY, "seconds") if beside else "")
        rows.append([side, *cells])
    return rows


def draw(parts: Mapping[str, Any], folder: Path) -> None:
    """Draw time and memory over the size of the checkpoint."""
    shapes = list(by_size(parts).values())
    figure, (left, right) = load_pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    xs = [round(part["bytes"] / 1e9, 1) for part in shapes]
    found = [side for part in shapes for side in part["runs"]]
    known = dict.fromkeys(sorted(found, key=lambda side: side in (COPY, COPY_SYNCED)))
    for axes, name in ((left, "seconds"), (right, "peak_mib")):
        curves = {side: [_spread(part["runs"], side, name) for part in shapes] for side in known}
        draw_curves(axes, xs, {side: one for side, one in curves.items() if any(one)})
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xlabel("checkpoint, GB in bf16")
        plain_ticks(axes)
    left.set_ylabel("seconds")
    left.set_title("command line to the last byte")
    right.set_ylabel("MiB")
    right.set_ylim(100, 10_000)
    right.set_title("resident memory at its peak")
    save(figure, folder / "merge.svg")


def _spread(runs: Runs, side: str, name: str) -> dict[str, float] | None:
    if side not in runs or name not in runs[side][0]:
        return None
    return spread([run[name] for run in runs[side]], 4)
