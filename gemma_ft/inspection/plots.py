"""Plots as inline SVG whose bars stretch with the page while their labels keep their size."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma_ft.inspection.lengths import Bin
from gemma_ft.inspection.markup import Markup, element, join
from gemma_ft.inspection.summary import percent

_HEIGHT = 180
_TOP = 22
"""Room above the bars, for the label of the cut."""
_LEAST_BAR = 4.0
"""Height of a bar of a single row, however many the others have."""
_MOST_TICKS = 8
_NICE = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram."""

    start: float
    """Where it begins, as a share of the axis."""
    stop: float
    rows: int
    tip: str
    """What it stands for."""
    beyond: bool = False
    """Whether it stands for what is cut."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label under the axis."""

    at: float
    """Where, as a share of the axis."""
    text: str


def length_plot(bins: Sequence[Bin], cut: int) -> Markup:
    """Draw how many rows have which length, with the cut where there are rows beyond it.

    Args:
        bins: The rows; the last bin may be open.
        cut: Tokens of the longest row that stays whole.
    """
    closed = [each for each in bins if each.up_to is not None]
    width = closed[0].up_to or 1
    end = (closed[-1].up_to or 1) + (width if len(closed) < len(bins) else 0)
    bars = []
    for each in bins:
        stop = end if each.up_to is None else each.up_to
        span = f"over {each.above:,}" if each.up_to is None else f"{each.above + 1:,} to {each.up_to:,}"
        tip = f"{span} tokens: {each.rows:,} rows"
        bars.append(Bar(each.above / end, stop / end, each.rows, tip, each.above >= cut))
    every = -(-len(closed) // _MOST_TICKS)
    edges = [0, *(each.up_to or 0 for each in closed)][::every]
    ticks = [Tick(edge / end, f"{edge:,}") for edge in edges]
    if len(closed) < len(bins):
        ticks = [*(tick for tick in ticks if tick.at < 0.9), Tick(1.0, "more")]
    shown_cut = cut / end if any(bar.beyond for bar in bars) else None
    label = f"cut at {cut:,}"
    return histogram(bars, ticks, "tokens of a row, before the cut", "rows", cut=shown_cut, cut_label=label)


def share_plot(rows: Sequence[int], axis: str, noun: str) -> Markup:
    """Draw how many rows have which share of something, from nothing to all.

    Args:
        rows: Rows in equal steps.
        axis: What the share is of.
        noun: What is counted.
    """
    steps = len(rows)
    bars = [
        Bar(step / steps, (step + 1) / steps, number, f"{_span(step, steps)}: {number:,} {noun}")
        for step, number in enumerate(rows)
    ]
    ticks = [Tick(quarter / 4, percent(quarter / 4)) for quarter in range(5)]
    return histogram(bars, ticks, axis, noun)


def _span(step: int, steps: int) -> str:
    return f"{step / steps:.0%} to {(step + 1) / steps:.0%}"


def histogram(
    bars: Sequence[Bar],
    ticks: Sequence[Tick],
    axis: str,
    noun: str,
    *,
    cut: float | None = None,
    cut_label: str = "",
) -> Markup:
    """Draw bars over an axis.

    Args:
        bars: From left to right.
        ticks: Labels under the axis.
        axis: What the axis shows, with its unit.
        noun: What is counted.
        cut: Where a line is drawn, as a share of the axis.
        cut_label: What the line says.
    """
    top = _nice_top(max(bar.rows for bar in bars))
    parts = [_grid(top), *(_bar(bar, top) for bar in bars if bar.rows), _axis(ticks)]
    if cut is not None:
        parts.append(_cut(cut, cut_label))
    about = f"Histogram: {axis}. " + "; ".join(bar.tip for bar in bars if bar.rows)
    drawing = element(
        "svg", *parts, class_="plot", width="100%", height=_TOP + _HEIGHT + 24, role="img", aria_label=about
    )
    return element(
        "figure",
        element("div", noun, class_="up"),
        element("div", drawing, class_="frame"),
        element("figcaption", axis),
    )


def _nice_top(most: int) -> int:
    """Return the least round number above the bars that halves into a whole one."""
    scale = 1
    while scale * 10 < most:
        scale *= 10
    tops = (int(step * scale) for step in _NICE if step * scale == int(step * scale))
    top = next(top for top in tops if top >= most)
    return top + top % 2


def _y(rows: float, top: int) -> float:
    return _TOP + _HEIGHT * (1 - rows / top)


def _grid(top: int) -> Markup:
    lines = []
    for rows in (0, top // 2, top):
        y = _y(rows, top)
        lines.append(element("line", x1="0", x2="100%", y1=y, y2=y, class_="base" if rows == 0 else "grid"))
        lines.append(element("text", _short(rows), x="-8", y=y + 4, class_="y"))
    return join(*lines)


def _short(number: int) -> str:
    for size, sign in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size or (number >= size and number % (size // 10) == 0):
            return f"{number / size:.3g}{sign}"
    return str(number)


def _bar(bar: Bar, top: int) -> Markup:
    height = max(_HEIGHT * bar.rows / top, _LEAST_BAR)
    return element(
        "rect",
        element("title", bar.tip),
        x=f"{bar.start:.3%}",
        width=f"{bar.stop - bar.start:.3%}",
        y=_TOP + _HEIGHT - height,
        height=height,
        class_="beyond" if bar.beyond else None,
    )


def _axis(ticks: Sequence[Tick]) -> Markup:
    """Label the axis; on a narrow page every other label goes, but never the first or the last one."""
    labels = []
    last = len(ticks) - 1
    for number, tick in enumerate(ticks):
        anchor = "start" if tick.at == 0 else "end" if tick.at > 0.985 else "middle"
        labels.append(
            element(
                "text",
                tick.text,
                x=f"{tick.at:.3%}",
                y=_TOP + _HEIGHT + 18,
                text_anchor=anchor,
                class_="odd" if number and (last - number) % 2 else None,
            )
        )
    return join(*labels)


def _cut(at: float, label: str) -> Markup:
    left = at > 0.7
    return join(
        element("line", x1=f"{at:.3%}", x2=f"{at:.3%}", y1=4, y2=_TOP + _HEIGHT, class_="cut"),
        element(
            "text",
            label,
            x=f"{at:.3%}",
            y=14,
            dx=-6 if left else 6,
            text_anchor="end" if left else "start",
            class_="cut",
        ),
    )


def fill_bar(share: float, label: str, *, rest: str) -> Markup:
    """Draw how much of something is tokens and how much is nothing.

    Args:
        share: The tokens' share.
        label: What it is of.
        rest: What the rest is.
    """
    about = f"{label}: {percent(share)} tokens, {percent(1 - share)} {rest}"
    bar = element(
        "svg",
        element("rect", x="0", y="0", width="100%", height="14", class_="rest"),
        element("rect", x="0", y="0", width=f"{share:.3%}", height="14"),
        class_="fill",
        width="100%",
        height="14",
        role="img",
        aria_label=about,
    )
    text = element("span", f"{percent(share)} tokens, {percent(1 - share)} {rest}")
    return element("div", element("div", element("span", label), text, class_="says"), bar, class_="fills")
