"""Measure how fast rows are prepared, against TRL's preparation and the bare tokenizer, and in what memory.

`python benchmarks/data.py --peers FOLDER --tokenizer FOLDER`. All read the same JSON Lines of generated
conversations; gemma_ft and TRL end with packed, masked rows of at most 2048 tokens. Every measurement is a
process of its own; the sides take turns. See benchmarks/README.md.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations import write_conversations
from data_page import BARE, OURS, TRL, draw, page
from parts.kept import keep_part
from parts.processes import run_command, status_mib, tree
from parts.results import RESULTS, describe_machine, versions_of
from parts.turns import take_turns
from peers import find_peer, say_missing

SIDES = Path(__file__).resolve().parent / "sides"
MAX_LENGTH = 2048
PACKAGES = ("gemma_ft", "datasets", "pyarrow", "tokenizers", "torch", "transformers", "trl")
COUNTS = ("rows", "tokens", "learned_tokens", "sequences")
"""What both sides must agree on."""

Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where everything is."""

    work: Path
    tokenizer: Path
    model: Path
    """A small model, which TRL's trainer asks for before it prepares anything."""
    trl: Path | None
    """The Python of TRL's environment."""

    def rows(self, count: int, *, short: bool = False) -> Path:
        """Return a file of so many conversations, written on first use."""
        data = self.work / f"{'short' if short else 'long'}-{count}.jsonl"
        if not data.exists():
            write_conversations(data, count, short=short)
        return data

    def command(self, side: str, data: Path, processes: int | None = None) -> list[str | Path]:
        """Return the command that prepares a file."""
        if side == BARE:
            return [sys.executable, SIDES / "prepare_bare.py", data, self.tokenizer]
        if side == OURS:
            return [sys.executable, SIDES / "prepare_ours.py", data, self.tokenizer, str(MAX_LENGTH)]
        assert self.trl is not None
        words = [self.trl, SIDES / "prepare_trl.py", data, self.tokenizer, str(MAX_LENGTH), self.model]
        return [*words, *([str(processes)] if processes else [])]


class Private(threading.Thread):
    """Follows the memory of all that this process has started, pages of files left out."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        """Keep the highest sum seen."""
        while not self.ended.wait(0.05):
            children = tree(os.getpid())[1:]
            self.peak_mib = max(self.peak_mib, sum(status_mib(pid, "RssAnon") for pid in children))


@contextlib.contextmanager
def private_memory() -> Iterator[Private]:
    """Follow it through a block."""
    memory = Private()
    memory.start()
    try:
        yield memory
    finally:
        memory.ended.set()
        memory.join()


def measure(
    place: Place, side: str, data: Path, *, warm: bool = False, processes: int | None = None
) -> Found:
    """Prepare a file in a process of its own, with a cache of its own that is empty unless `warm`."""
    cache = place.work / "cache" / side
    if not warm:
        shutil.rmtree(cache, ignore_errors=True)
    environment = {
        "XDG_CACHE_HOME": str(cache),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    with private_memory() as memory:
        run = run_command(place.command(side, data, processes), environment=environment)
    said = next(line.text for line in reversed(run.lines) if line.text.startswith('{"seconds"'))
    found: Found = json.loads(said)
    before = next(line for line in run.lines if line.text == "ready")
    return {
        **found,
        "tokens_per_second": round(found["tokens"] / found["seconds"]),
        "private_mib": round(memory.peak_mib),
        "resident_mib": round(run.peak_mib),
        "resident_mib_before": round(before.resident_mib),
    }


def check_same(runs: dict[str, list[Found]]) -> None:
    """End where two preparations of the same rows differ in what came out."""
    prepared = [one for side, found in runs.items() for one in found if side != BARE]
    if len({tuple(one[name] for name in COUNTS) for one in prepared}) > 1:
        sys.exit(f"the sides prepared different rows: {prepared}")


def compare(place: Place, sides: Sequence[str], rows: int, repeats: int, *, short: bool = False) -> Found:
    """Let the sides prepare the same rows in turns."""
    data = place.rows(rows, short=short)
    turns = {side: lambda _, side=side: measure(place, side, data) for side in sides}
    runs = take_turns(turns, repeats, say)
    check_same(runs)
    shutil.rmtree(place.work / "cache", ignore_errors=True)
    return {"rows_in_file": rows, "bytes": data.stat().st_size, "runs": runs}


def pair(place: Place, sides: Sequence[str], asked: argparse.Namespace) -> Found:
    """Compare all sides, several times."""
    return compare(place, sides, asked.pair_rows, asked.repeats)


def long(place: Place, sides: Sequence[str], asked: argparse.Namespace) -> Found:
    """Compare all sides once on many rows."""
    return compare(place, sides, asked.rows, 1)


def again(place: Place, sides: Sequence[str], asked: argparse.Namespace) -> Found:
    """Prepare the same rows again from each side's cache; and TRL's with a process a core."""
    data, runs = place.rows(asked.pair_rows), {}
    for side in (side for side in sides if side != BARE):
        measure(place, side, data)
        runs[side] = [measure(place, side, data, warm=True)]
        say(f"{side}, again: {runs[side]}")
    if TRL in sides:
        processes = os.cpu_count()
        runs[f"{TRL}, dataset_num_proc={processes}"] = [measure(place, TRL, data, processes=processes)]
    return {"rows_in_file": asked.pair_rows, "bytes": data.stat().st_size, "runs": runs}


def growth(place: Place, sides: Sequence[str], asked: argparse.Namespace) -> Found:
    """Prepare more and more rows, short ones, so that a million fit a disk."""
    steps = []
    for rows in asked.growth:
        taking = [side for side in sides if side != TRL or rows <= asked.peer_growth]
        repeats = asked.repeats if rows <= asked.pair_rows else 1
        steps.append(compare(place, taking, rows, repeats, short=True))
        place.rows(rows, short=True).unlink()
    return {"steps": steps}


PARTS: dict[str, Callable[[Place, Sequence[str], argparse.Namespace], Found]] = {
    "pair": pair,
    "long": long,
    "again": again,
    "growth": growth,
}


def say(text: str) -> None:
    """Tell what goes on, where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments (benchmarks/peers.py)")
    parser.add_argument("--tokenizer", metavar="[NAME=]FOLDER", help="otherwise that of the bundled model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pair-rows", type=int, default=10_000, help="rows of the repeated comparison")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the long comparison")
    parser.add_argument("--growth", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--peer-growth", type=int, default=1_000_000, help="most rows that TRL is given there"
    )
    parser.add_argument("--work", type=Path, help="where rows and caches go (15 GB; else a temporary folder)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Take the measurements that are asked for, and write each as it comes."""
    asked = read_arguments()
    from gemma_ft.modeling.tiny import load_tiny

    model = load_tiny()
    name, _, folder = (asked.tokenizer or f"bundled={model}").rpartition("=")
    tokenizer = Path(folder).resolve()
    trl = find_peer(asked.peers, "trl")
    for line in say_missing(asked.peers, ["trl"]):
        say(line)
    sides = [OURS, *([TRL] if trl else []), BARE]
    words = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    with tempfile.TemporaryDirectory(dir=asked.work) as work:
        place = Place(work=Path(work), tokenizer=tokenizer, model=model, trl=trl and trl.with_name("python"))
        for part in asked.parts:
            about: Found = {
                "machine": describe_machine(),
                "versions": {OURS: versions_of(sys.executable, PACKAGES)},
                "tokenizer": {"name": name or tokenizer.name, "words": len(words)},
                "max_length": MAX_LENGTH,
            }
            if place.trl:
                about["versions"][TRL] = versions_of(place.trl, PACKAGES)
            found = about | PARTS[part](place, sides, asked)
            draw(keep_part("data", part, found, page, asked.results), asked.results)


if __name__ == "__main__":
    main()
