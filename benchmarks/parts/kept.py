"""Results that are measured part by part: each keeps its own date, machine and versions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts.results import RESULTS, write_results

Parts = dict[str, Any]


def read_parts(name: str, folder: Path = RESULTS) -> Parts:
    """Return the parts that are in NAME.json; none where it is not there."""
    file = folder / f"{name}.json"
    parts: Parts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return parts


def keep_part(
    name: str, part: str, found: dict[str, Any], page: Callable[[Parts], str], folder: Path = RESULTS
) -> Parts:
    """Put one part into NAME.json in the place of its last measurement, and write the page of all of them.

    Args:
        name: The benchmark.
        part: Which part of it.
        found: What was measured.
        page: Makes the page of tables from all parts.
        folder: Where results stand.

    Returns:
        All parts.
    """
    parts = read_parts(name, folder) | {part: found}
    write_results(name, parts, page(parts), folder)
    return parts
