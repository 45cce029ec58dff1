"""Write the pages and plots of what was measured again, from the JSON: `python benchmarks/pages.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_page
import merge_page
import start_page
from parts.kept import read_parts
from parts.results import RESULTS, write_whole
from step_parts import growth
from step_parts import page as step_page

Parts = dict[str, Any]
PAGES: dict[str, tuple[Callable[[Parts], str], Callable[[Parts, Path], Any]]] = {
    "data": (data_page.page, data_page.draw),
    "merge": (merge_page.page, merge_page.draw),
    "start": (start_page.page, start_page.draw),
    "step": (step_page.write_page, lambda parts, folder: step_page.draw(parts, folder / "step.svg")),
    "step_growth": (
        growth.write_page,
        lambda parts, folder: growth.draw(parts, folder / "step_growth.svg"),
    ),
}
"""Benchmarks whose results are kept part by part: what writes their page, and what draws into a folder."""


def main() -> None:
    """Write what is there."""
    for name, (write, draw) in PAGES.items():
        if parts := read_parts(name):
            write_whole(RESULTS / f"{name}.md", write(parts))
            draw(parts, RESULTS)


if __name__ == "__main__":
    main()
