"""The tables and the plot of `data.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parts.plots import draw_curves, load_pyplot, save
from parts.results import describe_in_words, markdown_table
from parts.turns import ratios, significant, spread

OURS, TRL, BARE = "gemma_ft", "TRL", "bare tokenizer"
SHORT_HEADS = ("", OURS, "the other", "")
"""Heads of the table of what matters most, the same on the page of every benchmark."""

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def page(parts: Mapping[str, Any]) -> str:
    """Return the page of all parts that were measured."""
    sections = {"pair": _pair, "long": _pair, "again": _again, "growth": _growth}
    text = "# Preparing rows\n\n" + markdown_table(SHORT_HEADS, short_rows(parts))
    for name in [name for name in sections if name in parts]:
        part = parts[name]
        about = f"Tokenizer: {part['tokenizer']['name']}, {part['tokenizer']['words']:,} words; "
        about += f"sequences of {part['max_length']} tokens.\n"
        text += f"\n## {_TITLES[name]}\n\n{describe_in_words(part)}\n{about}\n{sections[name](part)}"
    return text


_TITLES = {
    "pair": "The sides in turns",
    "long": "Many rows",
    "again": "Again, from the cache",
    "growth": "Growth over rows",
}


def short_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """Return what matters most: the longest comparison with each other side, the fastest run of each."""
    part = parts.get("long") or parts.get("pair")
    if part is None:
        return []
    runs, rows = part["runs"], f"{part['rows_in_file']:,} chats"
    lines = []
    for other in (other for other in (TRL, BARE) if other in runs):
        for words, name in (("tokens a second", "seconds"), ("tokens a CPU second", "cpu_seconds")):
            best = [max(run["tokens"] / run[name] for run in runs[side]) for side in (OURS, other)]
            cells = [f"{one / 1e6:.2f} M" for one in best]
            times = f"{significant(best[0] / best[1], 2):g}x as fast"
            lines.append([f"preparing {rows}, {words}, {other}", *cells, times])
    if TRL in runs:
        ours, trl = (spread(column(runs, side, "private_mib"))["median"] for side in (OURS, TRL))
        cells = [f"{ours:,.0f} MiB", f"{trl:,.0f} MiB", f"{ours / trl:.0%} of it"]
        lines.append([f"preparing {rows}, private memory at its peak, {TRL}", *cells])
    return lines


def column(runs: Runs, side: str, name: str) -> list[float]:
    """Return one figure of a side, of all its repeats."""
    return [run[name] for run in runs[side]]


def rate(runs: Runs, side: str) -> str:
    """Return millions of tokens a second, the median."""
    return f"{spread(column(runs, side, 'tokens_per_second'))['median'] / 1e6:.2f} M"


def faster(runs: Runs, other: str, side: str = OURS) -> str:
    """Return how many times the other's tokens a second a side makes, with the spread of its repeats."""
    found = ratios(column(runs, side, "tokens_per_second"), column(runs, other, "tokens_per_second"))
    if len(runs[side]) == 1:
        return f"{significant(found['median'], 2):g}x"
    return f"{significant(found['median'], 2):g}x ({found['low']:g} to {found['high']:g})"


def memory(runs: Runs, side: str) -> list[str]:
    """Return private and resident memory at their peaks, and what stood before the first row, in MiB."""
    names = ("private_mib", "resident_mib", "resident_mib_before")
    return [f"{spread(column(runs, side, name), 4)['median']:,.0f}" for name in names]


def _pair(part: Mapping[str, Any]) -> str:
    runs = part["runs"]
    heads = ("", "repeats", "tokens", "seconds", "CPU seconds", "tokens/s", f"{OURS} against it")
    heads = (*heads, "private MiB", "resident MiB", "before the first row")
    rows = []
    for side, found in runs.items():
        times = [f"{spread(column(runs, side, name))['median']:g}" for name in ("seconds", "cpu_seconds")]
        beside = "" if side == OURS else faster(runs, side)
        cells = [len(found), f"{found[0]['tokens']:,}", *times, rate(runs, side), beside, *memory(runs, side)]
        rows.append([side, *cells])
    return f"{part['rows_in_file']:,} chats, {part['bytes'] / 1e6:,.0f} MB.\n\n" + markdown_table(heads, rows)


def _again(part: Mapping[str, Any]) -> str:
    rows = [
        [side, found[0]["seconds"], rate(part["runs"], side), f"{found[0]['private_mib']:,}"]
        for side, found in part["runs"].items()
    ]
    says = f"{part['rows_in_file']:,} chats; the last line is not from the cache.\n\n"
    return says + markdown_table(("", "seconds", "tokens/s", "private MiB"), rows)


def _growth(part: Mapping[str, Any]) -> str:
    heads = ("rows", "tokens", f"{OURS}: seconds", "TRL: seconds", "tokens/s against TRL")
    heads = (*heads, f"{OURS}: private MiB", "TRL: private MiB", "bare tokenizer: seconds")
    rows = []
    for step in part["steps"]:
        runs = step["runs"]
        seconds = {side: f"{spread(column(runs, side, 'seconds'))['median']:g}" for side in runs}
        mib = {side: f"{spread(column(runs, side, 'private_mib'), 4)['median']:,.0f}" for side in runs}
        cells = [f"{step['rows_in_file']:,}", f"{runs[OURS][0]['tokens']:,}", seconds[OURS], seconds.get(TRL)]
        cells += [faster(runs, TRL) if TRL in runs else None, mib[OURS], mib.get(TRL), seconds.get(BARE)]
        rows.append(cells)
    return "Short chats of two turns.\n\n" + markdown_table(heads, rows)


def draw(parts: Mapping[str, Any], folder: Path) -> None:
    """Draw time and memory over rows; nothing before they were measured."""
    if "growth" not in parts:
        return
    steps = parts["growth"]["steps"]
    figure, (left, right) = load_pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    xs = [step["rows_in_file"] for step in steps]
    for axes, name, sides in (
        (left, "seconds", (OURS, TRL, BARE)),
        (right, "private_mib", (OURS, TRL)),
    ):
        curves = {side: [_spread(step["runs"], side, name) for step in steps] for side in sides}
        draw_curves(axes, xs, {side: known for side, known in curves.items() if any(known)})
        axes.set_xlabel("rows (short chats)")
        plain_ticks(axes)
    left.set_ylabel("seconds")
    left.set_title("time to packed rows")
    right.set_ylabel("MiB")
    right.set_ylim(100, 10_000)
    right.set_title("private memory at its peak")
    save(figure, folder / "data.svg")


def plain_ticks(axes: Any) -> None:
    """Write the decades of a logarithmic axis out, and nothing between them."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter("")


def _spread(runs: Runs, side: str, name: str) -> dict[str, float] | None:
    return spread(column(runs, side, name), 4) if side in runs else None
