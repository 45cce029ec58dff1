"""What step.json comes to, as tables and bars."""

from pathlib import Path
from typing import Any

from parts import plots
from parts.results import describe_in_words, markdown_table

from step_parts.cases import CASES
from step_parts.sides import OURS, SIDES, TRL

_HOW = """# A training step, against other programs

Written by `python benchmarks/step.py`. Sides take turns in one run; figures are the median of the repeats and
their lowest and highest. Tokens a second and processor seconds a step are taken between the log lines of the
first step and of the last. Peak memory is the most resident memory of the largest process, above what the
same program holds with the model loaded and one step of one short row done. Goals: against `trl sft`.
"""


def page(kept: dict[str, Any]) -> str:
    """Return the page of all cases."""
    said = dict.fromkeys(describe_in_words(found) for found in in_order(kept).values())
    tables = [_write_case(name, found) for name, found in in_order(kept).items()]
    return "\n".join([_HOW, *said, *tables])


def in_order(kept: dict[str, Any]) -> dict[str, Any]:
    """Return the cases that were measured, in the order of their list."""
    return {name: kept[name] for name in CASES if name in kept}


def _write_case(name: str, found: dict[str, Any]) -> str:
    rows = []
    for side, figures in found["sides"].items():
        against = found["against"].get(side, {})
        rows.append(
            [
                side,
                _span(figures["tokens_a_second"]),
                _times(against.get("times_as_fast")),
                _span(figures["cpu_seconds_a_step"]),
                _times(against.get("times_as_fast_by_cpu_seconds")),
                _span(figures["mib_above_loaded"]),
                f"{against['memory_of_theirs']:.2f}x" if against else None,
                _gap(against.get("largest_gap_of_losses")),
            ]
        )
    heads = ["", "tokens/s", "ours is", "CPU s a step", "by CPU", "MiB above the model", "ours takes"]
    text = f"## {name}: {found['says']}\n\n" + markdown_table([*heads, "largest gap of losses"], rows)
    said = _say_goals(name, found)
    return f"{text}\n{said}\n" if said else text


def _say_goals(name: str, found: dict[str, Any]) -> str:
    case, against = CASES[name], found["against"].get(TRL)
    if against is None:
        return ""
    said = []
    if case.goal:
        got = against["times_as_fast"]["median"]
        said.append(_verdict(f"at least {case.goal:g}x the tokens/s", got >= case.goal, f"{got:.2f}x"))
    if case.memory_goal:
        part = against["memory_of_theirs"]
        said.append(
            _verdict(f"at most {case.memory_goal:g}x the memory", part <= case.memory_goal, f"{part:.2f}x")
        )
    gap = against["largest_gap_of_losses"]
    same = gap is not None and gap <= 1e-4
    said.append(_verdict("losses equal within 1e-4", same, _gap(gap) or "other rows in a step"))
    return "Goals: " + "; ".join(said) + "."


def _verdict(goal: str, reached: bool, got: str) -> str:
    return f"{goal}: {'reached' if reached else '**missed**'} ({got})"


def _span(one: dict[str, float]) -> str:
    return f"{_short(one['median'])} ({_short(one['low'])} to {_short(one['high'])})"


def _times(one: dict[str, float] | None) -> str | None:
    return one and f"**{one['median']:.2f}x** ({one['low']:.2f} to {one['high']:.2f})"


def _gap(gap: float | None) -> str | None:
    return None if gap is None else f"{gap:.1g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(kept: dict[str, Any], folder: Path) -> None:
    """Draw tokens a second and memory, each in multiples of ours, whose own figure stands below the case."""
    pyplot = plots.load_pyplot()
    cases = in_order(kept)
    sides = [side for side in SIDES if any(side in found["sides"] for found in cases.values())]
    figure, panels = pyplot.subplots(2, 1, figsize=(1.6 + 1.35 * len(cases), 7), layout="constrained")
    units = (("tokens_a_second", "tokens/s"), ("mib_above_loaded", "MiB"))
    titles = (
        "Tokens a second, as multiples of trl sft's (higher is better)",
        "Peak memory above the loaded model, as multiples of trl sft's (lower is better)",
    )
    for axes, (key, unit), title in zip(panels, units, titles, strict=True):
        base = {
            name: found["sides"].get(TRL, found["sides"][OURS])[key]["median"]
            for name, found in cases.items()
        }
        labels = {name: name.replace(", ", ",\n") for name in cases}
        groups = [f"{labels[name]}\n1 = {_short(base[name])} {unit}" for name in cases]
        bars = {
            side: [_multiple(found["sides"].get(side), key, base[name]) for name, found in cases.items()]
            for side in sides
        }
        plots.draw_bars(axes, groups, bars)
        axes.axhline(1, color="#555555", linewidth=0.7, zorder=0)
        axes.set_title(title, loc="left")
        axes.set_ylabel("multiples")
    plots.save(figure, folder / "step.svg")


def _multiple(figures: dict[str, Any] | None, key: str, base: float) -> dict[str, float] | None:
    return figures and {name: value / base for name, value in figures[key].items()}
