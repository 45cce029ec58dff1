"""Plots, as SVG: bars of sides with their spread, and curves of growth. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#1b6ca8", "#e07b39", "#5f9e6e", "#8d6aa8", "#7a7a7a")
"""Told apart by those who see no red or no green, and in grey."""

Spread = Mapping[str, float]
"""median, low, high, as `turns.spread` gives them."""


def load_pyplot() -> Any:
    """Import matplotlib without a screen, its SVG the same bytes for the same figures.

    Raises:
        SystemExit: It is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("The plots need matplotlib. Run: pip install -e '.[bench]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "gemma_ft",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, file: Path) -> None:
    """Write a figure, and forget it."""
    beside = file.with_name(f".{file.name}")
    figure.savefig(beside, format=file.suffix.removeprefix("."), metadata=_metadata(file), dpi=110)
    beside.replace(file)
    load_pyplot().close(figure)


def _metadata(file: Path) -> dict[str, Any]:
    return {"Date": None} if file.suffix == ".svg" else {}


def draw_bars(axes: Any, groups: Sequence[str], sides: Mapping[str, Sequence[Spread | None]]) -> None:
    """Draw a bar a side in each group, its median written on it, its spread as a line; None: no bar."""
    width = 0.8 / len(sides)
    for place, (side, spreads) in enumerate(sides.items()):
        colour = COLOURS[place % len(COLOURS)]
        known = [(group, one) for group, one in enumerate(spreads) if one is not None]
        xs = [group + (place - (len(sides) - 1) / 2) * width for group, _ in known]
        tops = [one["median"] for _, one in known]
        reach = [
            [one["median"] - one["low"] for _, one in known],
            [one["high"] - one["median"] for _, one in known],
        ]
        bars = axes.bar(xs, tops, width * 0.94, label=side, color=colour, yerr=reach, capsize=2)
        axes.bar_label(
            bars, labels=[f"{top:,.3g}" if top < 1000 else f"{top:,.0f}" for top in tops], fontsize=7
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.margins(y=0.12)
    axes.legend(frameon=False)


def draw_curves(axes: Any, xs: Sequence[float], sides: Mapping[str, Sequence[Spread | None]]) -> None:
    """Draw a curve a side, with its spread as a band, both axes logarithmic; None: a gap."""
    for place, (side, spreads) in enumerate(sides.items()):
        colour = COLOURS[place % len(COLOURS)]
        known = [(x, one) for x, one in zip(xs, spreads, strict=True) if one is not None]
        at = [x for x, _ in known]
        axes.plot(at, [one["median"] for _, one in known], "o-", markersize=4, color=colour, label=side)
        low, high = ([one[end] for _, one in known] for end in ("low", "high"))
        axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(xs, [f"{x:,.0f}" if x >= 10 else f"{x:g}" for x in xs])
    axes.set_xticks([], minor=True)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
