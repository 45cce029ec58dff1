"""Measure the merge against PEFT's and against `cp` of the same bytes: `python benchmarks/merge.py FOLDER`.

Synthetic Gemmas of growing size and a rank 16 adapter on every linear layer are written into FOLDER, one at a
time, and removed again. Each measurement is a process of its own, and the sides take turns. Where the base
fits into memory, each side finds it there.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from checkpoints import SHAPES, SHARD_BYTES, base_bytes, make
from merge_page import COPY, COPY_SYNCED, OURS, PEFT, draw, page
from parts.kept import keep_part
from parts.processes import run_command
from parts.results import RESULTS, describe_machine, versions_of
from parts.turns import take_turns
from peers import find_peer, say_missing

SIDES = Path(__file__).resolve().parent / "sides"
HELD = {OURS: "original", f"{OURS}, int8 base": "int8", f"{OURS}, nf4 base": "nf4"}
"""Our sides, and how training held the base that is merged onto."""
CHOICES = (COPY, COPY_SYNCED, PEFT, *HELD)
PACKAGES = ("gemma_ft", "torch", "transformers", "peft", "safetensors", "bitsandbytes")
_PEFT_NEEDS = 1.35
"""PEFT holds the whole model, and more while it merges; in multiples of the checkpoint."""
_ONCE = tuple(HELD)[1:]
"""Sides that are measured once: they quantise first, which takes most of their time."""


def command_of(side: str, folder: Path, peer: Path | None) -> list[str | Path]:
    """Return the command that copies or merges the base in a folder."""
    base, adapter, copy = folder / "base", folder / "adapter", folder / "copy"
    if side == COPY:
        return ["cp", "-r", base, copy]
    if side == COPY_SYNCED:
        return ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', base, copy]
    if side == PEFT:
        assert peer is not None
        return [peer, SIDES / "merge_peft.py", base, adapter, copy]
    return [sys.executable, SIDES / "merge_ours.py", base, adapter, copy, HELD[side], str(SHARD_BYTES)]


def measure(side: str, folder: Path, peer: Path | None) -> dict[str, Any]:
    """Run one side; return its seconds from the command line on, and what it says of itself."""
    for file in (folder / "base").iterdir():
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass
    os.sync()
    run = run_command(command_of(side, folder, peer))
    shutil.rmtree(folder / "copy")
    said = [json.loads(line.text) for line in run.lines if line.text.startswith('{"seconds"')]
    found = {"seconds": round(run.seconds, 2), "cpu_seconds": round(run.cpu_seconds, 2)}
    if said:
        found |= {"seconds_after_imports": said[0]["seconds"], "peak_mib": said[0]["peak_mib"]}
    return found


def measure_shape(
    shape: str, folder: Path, sides: list[str], peer: Path | None, repeats: int
) -> dict[str, Any]:
    """Write a checkpoint, let the sides take turns, and remove it."""
    left_out = {}
    free = psutil.virtual_memory().available
    if PEFT in sides and base_bytes(shape) * _PEFT_NEEDS > free:
        sides = [side for side in sides if side != PEFT]
        left_out[PEFT] = f"it holds the whole model in memory, of which {free / 1e9:.1f} GB were free"
    try:
        make(shape, folder)
        turns: dict[str, Callable[[int], dict[str, Any]]] = {
            side: lambda _, side=side: measure(side, folder, peer) for side in sides
        }
        once = {side: turns.pop(side) for side in _ONCE if side in turns}
        runs = take_turns(turns, repeats, say) | take_turns(once, 1, say)
    finally:
        for name in ("base", "adapter", "copy"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return {"bytes": base_bytes(shape), "runs": runs, "left_out": left_out}


def say(text: str) -> None:
    """Tell what goes on, where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure each shape, and write it as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder on the disk to measure")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments (benchmarks/peers.py)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["270m", "0.6b", "2b"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=CHOICES, default=[COPY, COPY_SYNCED, OURS, PEFT])
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if any(folder.iterdir()):
        sys.exit(f"{folder} is not empty. Give an empty folder on the disk to measure.")
    trl = find_peer(asked.peers, "trl")  # its environment has PEFT too
    peer = trl and trl.with_name("python")
    sides = [side for side in asked.sides if side != PEFT or peer]
    for line in say_missing(asked.peers, ["trl"]):
        say(line)
    for shape in asked.shapes:
        about: dict[str, Any] = {"machine": describe_machine()}
        about["versions"] = {OURS: versions_of(sys.executable, PACKAGES)}
        if peer:
            about["versions"][PEFT] = versions_of(peer, PACKAGES)
        found = about | measure_shape(shape, folder, sides, peer, asked.repeats)
        draw(keep_part("merge", shape, found, page, asked.results), asked.results)


if __name__ == "__main__":
    main()
