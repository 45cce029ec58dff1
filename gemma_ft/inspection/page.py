"""A survey as one self-contained page: no script, no font, nothing from a network."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from gemma_ft import __version__
from gemma_ft.errors import ConfigError
from gemma_ft.inspection import summary
from gemma_ft.inspection.left_out import DroppedRows
from gemma_ft.inspection.markup import Markup, element, join
from gemma_ft.inspection.measures import Measure
from gemma_ft.inspection.notes import find_notes
from gemma_ft.inspection.pieces import show
from gemma_ft.inspection.plots import fill_bar, length_plot, share_plot
from gemma_ft.inspection.row_blocks import row_block
from gemma_ft.inspection.summary import percent
from gemma_ft.inspection.survey import NotableRow, Survey
from gemma_ft.runs import write_text

_KEY = re.compile(r"((?:dataset|trainer)\.[\w.]+(?:=[\w.]*\w)?)")


def write_page(survey: Survey, file: Path) -> None:
    """Write a survey as a page, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        write_text(file, build_page(survey))
    except OSError as error:
        raise ConfigError(
            f"--html={file} cannot be written ({error.strerror or error}). Name another place."
        ) from error


def build_page(survey: Survey) -> str:
    """Build the whole page."""
    room = Path(__file__).parent
    template = Template((room / "page.html").read_text(encoding="utf-8"))
    title = summary.title(survey)
    sections = (_head, _plots, _sample, _notable, _mixture, _left_out, _totals)
    body = element("main", *(section(survey) for section in sections))
    return template.substitute(
        title=join(title),
        version=__version__,
        style=(room / "page.css").read_text(encoding="utf-8"),
        body=body,
    )


def _section(title: str, *children: str) -> Markup:
    return element("section", element("h2", title), *children)


def _head(survey: Survey) -> Markup:
    target = summary.loss_target(survey)
    notes = [element("li", *_with_keys(note)) for note in find_notes(survey)]
    return join(
        element(
            "header",
            element("h1", summary.title(survey)),
            element("p", target[0].upper() + target[1:] + ".", class_="soft"),
        ),
        element("dl", *(_figure(*figure) for figure in summary.figures(survey)), class_="figures"),
        element("ul", *notes, class_="notes", aria_label="Worth a look") if notes else "",
    )


def _with_keys(text: str) -> Iterator[str]:
    """Set the keys in a sentence as code."""
    for place, words in enumerate(_KEY.split(text)):
        yield element("code", words) if place % 2 else words


def _figure(value: str, label: str, about: str) -> Markup:
    return element(
        "div",
        element("dt", label),
        element("dd", value),
        element("dd", about, class_="about") if about else "",
    )


def _plots(survey: Survey) -> Markup:
    cut = survey.config.trainer.max_length
    lengths = survey.lengths
    beyond = summary.cut_line(survey) if lengths.longest > cut else f"no row reaches trainer.max_length={cut}"
    if lengths.longest == cut:
        beyond = f"the longest row just fits trainer.max_length={cut}"
    length = element(
        "section",
        element("h3", "How long the rows are"),
        element("p", _sentence(f"{summary.usual_lengths(lengths)}; {beyond}."), class_="soft"),
        length_plot(lengths.bins(cut), cut),
        class_="wide",
    )
    learned = percent(survey.facts["trained_share"])
    shares = element(
        "section",
        element("h3", "How much of a row is learned"),
        element("p", f"{learned} of all tokens.", class_="soft"),
        share_plot(survey.trained_shares, "share of a row's tokens that is learned", "rows"),
    )
    return _section("Lengths and batches", element("div", length, shares, _batches(survey), class_="plots"))


def _batches(survey: Survey) -> Markup:
    batches = survey.batches
    head = element("h3", "How full the batches are")
    says = element("p", f"{_sentence(summary.batch_line(survey))}.", class_="soft")
    if batches.fills:
        plot = share_plot(batches.fills, "share of a sequence that is tokens", "sequences")
        return element("section", head, says, plot)
    bars = [
        fill_bar(batches.row_fill, "a row, of what trainer.max_length allows", rest="unused"),
        fill_bar(batches.packed_efficiency, "rows packed: trainer.packing=true", rest="empty"),
    ]
    if batches.micro_batch_size > 1:
        label = f"micro-batches of {batches.micro_batch_size}"
        bars.insert(0, fill_bar(1 - batches.padding, label, rest="padding"))
    return element("section", head, says, *bars)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _sample(survey: Survey) -> Markup:
    if not survey.sample:
        return Markup()
    legend = element(
        "p",
        element("span", element("mark", element("i", "learned "), element("i", "tokens", class_="o"))),
        element("span", element("i", "read "), element("i", "only", class_="o")),
        element("span", element("i", "<control>", class_="c")),
        element("span", element("i", "<0xE4>", class_="b"), " byte"),
        element("span", element("s", "\u21b5"), " line break"),
        element("span", element("s", "\u00b7 \u2192"), " space, tab"),
        element("span", "Shades tell tokens apart; pointing at one shows its id."),
        class_="legend",
    )
    rows = [row_block(row, number) for number, row in enumerate(survey.sample, start=1)]
    shown = f"{len(rows)} of {summary.rows_of(survey.facts['rows_train'])}, a sample that the seed chooses."
    return _section("Rows as the model reads them", element("p", shown, class_="soft"), legend, *rows)


def _notable(survey: Survey) -> Markup:
    tables = [_notable_table(measure, rows) for measure, rows in survey.notable]
    return _section("The longest and the strangest rows", element("div", *tables, class_="tables"))


def _notable_table(measure: Measure, rows: Sequence[NotableRow]) -> Markup:
    lines = [
        element(
            "tr",
            element("td", summary.value_of(measure, row.value), class_="n"),
            element(
                "td",
                element("span", show(row.where), class_="where"),
                element("span", row.beginning, class_="words"),
            ),
        )
        for row in rows
    ]
    caption = element("caption", _sentence(measure.title))
    return element("div", element("table", caption, *lines))


def _mixture(survey: Survey) -> Markup:
    shares = summary.mixture_rows(survey.facts)
    if not shares:
        return Markup()
    head = element(
        "tr",
        element("th", "source", scope="col"),
        *(element("th", name, class_="n", scope="col") for name in ("weight", "tokens", "rows")),
    )
    lines = [
        element("tr", element("td", name), *(element("td", text, class_="n") for text in numbers))
        for name, *numbers in shares
    ]
    asked = f"Weights are shares of {survey.config.dataset.mixture_weights}."
    return _section("Mixture", element("p", asked, class_="soft"), element("table", head, *lines))


def _left_out(survey: Survey) -> Markup:
    if not survey.dropped:
        return Markup()
    causes = [element("li", *_cause(dropped)) for dropped in survey.dropped]
    return _section("Rows left out", element("ul", *causes, class_="left-out"))


def _cause(dropped: DroppedRows) -> Iterator[Markup]:
    yield element("h3", summary.cause_line(dropped))
    yield from (element("p", show(message)) for message in dropped.messages)
    if 0 < len(dropped.messages) < dropped.rows:
        yield element("p", f"and {dropped.rows - len(dropped.messages):,} more")


def _totals(survey: Survey) -> Markup:
    entries = [
        child
        for entry in summary.totals(survey)
        for child in (element("dt", entry.label), element("dd", entry.text))
    ]
    return _section("Everything that was counted", element("dl", *entries, class_="totals"))
