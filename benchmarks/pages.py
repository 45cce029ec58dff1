"""Write the pages and plots of what was measured again, from the JSON: `python benchmarks/pages.py`."""

import data_page
import merge_page
import start_page
from parts.kept import read_parts
from parts.results import RESULTS, write_whole
from step_parts import growth
from step_parts import page as step_page

PAGES = {
    "data": data_page,
    "merge": merge_page,
    "start": start_page,
    "step": step_page,
    "step_growth": growth,
}
"""Benchmarks whose results are kept part by part."""


def main() -> None:
    """Write what is there."""
    for name, module in PAGES.items():
        if parts := read_parts(name):
            write_whole(RESULTS / f"{name}.md", module.page(parts))
            module.draw(parts, RESULTS)


if __name__ == "__main__":
    main()
