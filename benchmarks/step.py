"""Measure a training step against other programs: `python benchmarks/step.py --peers FOLDER`.

Each side, ours, `trl sft`, LLaMA-Factory and litgpt, runs the same model, rows, batches and steps by its own
command line, in an environment of its own (made by peers.py), and the sides take turns. A step's time is that
between two lines of a side's own log, so start-up and the first step do not count. See benchmarks/README.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts import results, turns
from parts.kept import keep_part
from parts.processes import CommandError
from peers import say_missing
from step_parts import growth, page
from step_parts.cases import CASES
from step_parts.making import Place
from step_parts.measuring import compare, measure, measure_loaded
from step_parts.sides import OURS, PEERS, SIDES, program, versions_of_side


def main() -> None:
    """Measure the cases that are asked for, each into the results as soon as it ends."""
    asked = _parse()
    names = [OURS, *(name for name in asked.sides if program(name, asked.peers))]
    for line in say_missing(asked.peers, [PEERS[name] for name in asked.sides]):
        print(line, file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(folder=(asked.work or Path(temporary)).resolve())
        if asked.growth:
            growth.measure_growth(names, place, asked)
            return
        for case in asked.cases:
            try:
                found = measure_case(case, names, place, asked)
            except CommandError as error:
                sys.exit(f"{case}: {error}")
            keep(case, found, asked)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="the folder that peers.py made")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sides", nargs="*", choices=list(PEERS), default=list(PEERS), help="the peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="instead of those of each case; at least 2")
    parser.add_argument("--growth", nargs="*", choices=growth.CURVES, help="how cost grows, instead of cases")
    parser.add_argument(
        "--work", type=Path, help="keeps models and rows (1 GB; otherwise a temporary folder)"
    )
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of the results")
    parser.add_argument("--no-plots", action="store_true", help="write no SVG, which needs matplotlib")
    asked = parser.parse_args()
    if asked.growth == []:
        asked.growth = list(growth.CURVES)
    if asked.steps is not None and asked.steps < 2:
        parser.error("--steps must be at least 2: the first one is not measured")
    return asked


def measure_case(case: str, names: list[str], place: Place, asked: argparse.Namespace) -> dict[str, Any]:
    """Let the sides take turns on a case, and compare them."""
    sides = [name for name in names if SIDES[name].takes(CASES[case])]
    loaded = {name: measure_loaded(name, CASES[case].shape, place, asked.peers) for name in sides}
    steps = asked.steps or CASES[case].steps
    runs = turns.take_turns(
        {name: lambda _, name=name: measure(name, CASES[case], steps, place, asked.peers) for name in sides},
        asked.repeats,
        say=lambda line: print(f"{case}: {line}", file=sys.stderr, flush=True),
    )
    return {"says": CASES[case].says, **compare(runs, loaded)}


def keep(case: str, found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Put a case into step.json, step.md and step.svg, beside those measured before."""
    versions = {name: versions_of_side(name, asked.peers) for name in found["sides"]}
    part = {**found, "machine": results.describe_machine(), "versions": versions}
    kept = keep_part("step", case, part, page.page, asked.results)
    if not asked.no_plots:
        page.draw(kept, asked.results)


if __name__ == "__main__":
    main()
