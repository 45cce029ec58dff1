"""What README and docs/speed.md say of speed and memory is what the benchmarks wrote down."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "benchmarks"))

import pages  # noqa: E402
from parts.kept import read_parts  # noqa: E402

WRITERS = {name: module.page for name, module in pages.PAGES.items()}

MEASURED = "\n".join(page.read_text(encoding="utf-8") for page in sorted(RESULTS.glob("*.md")))
ROWS = {line.strip() for line in MEASURED.splitlines() if line.startswith("|")}
RATIO = re.compile(r"(?<![\w.])\d[\d.,]*x(?!\w)")


def quoted(file, heading=""):
    """Read a page, or one section of it; nothing where it has none of that name."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return text if not heading else text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]


QUOTING = [
    pytest.param(quoted("docs/speed.md"), id="docs/speed.md"),
    pytest.param(quoted("README.md", "## Speed"), id="README.md"),
]


def rows_of(text):
    """Every row of a table that holds a figure, its head and the line below left out."""
    lines = [line.strip() for line in text.splitlines()]
    heads = {index for index, line in enumerate(lines[1:]) if re.fullmatch(r"\|( -+:? \|)+", line)}
    rows = [line for index, line in enumerate(lines) if line.startswith("|") and index not in heads]
    return [row for row in rows if re.search(r"\d", row)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_page_of_results_is_what_its_json_comes_to(name):
    parts = read_parts(name)

    assert parts, f"benchmarks/results/{name}.json is not there"
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == WRITERS[name](parts)
    assert (RESULTS / f"{name}.svg").is_file()


@pytest.mark.parametrize("text", QUOTING)
def test_every_row_of_figures_stands_on_a_page_of_results(text):
    assert [row for row in rows_of(text) if row not in ROWS] == []


@pytest.mark.parametrize("text", QUOTING)
def test_every_ratio_in_a_sentence_was_measured(text):
    measured = set(RATIO.findall(MEASURED))

    assert set(RATIO.findall(text)) - measured == set()


def test_the_page_of_figures_quotes_some():
    assert len(rows_of(quoted("docs/speed.md"))) >= 10


def test_a_row_of_figures_is_told_from_the_head_of_its_table():
    table = "| size | 2 sides |\n| --- | ---: |\n| 7b | 3 |\n| none | no figure |\n"

    assert rows_of(table) == ["| 7b | 3 |"]
