"""Measure how long an answer takes, and training to begin: `python benchmarks/start.py --peers FOLDER`.

Each command is a process of its own; ours and the peers' take turns, after one round that warms the caches
and is not counted. See benchmarks/README.md.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations import write_conversations
from parts.kept import keep_part
from parts.processes import run_command
from parts.results import RESULTS, describe_machine, versions_of
from parts.turns import take_turns
from peers import find_peer, say_missing
from start_page import draw, page

PACKAGES = {
    "gemma_ft": ("gemma_ft", "hydra-core", "torch", "transformers", "trl", "peft", "bitsandbytes"),
    "trl": ("trl", "torch", "transformers", "peft"),
    "llamafactory": ("llamafactory", "torch", "transformers", "trl"),
    "litgpt": ("litgpt", "torch", "lightning"),
}
ANSWERS = {
    "--help": ["--help"],
    "train --help": ["train", "--help"],
    "recipes": ["recipes"],
    "a config error": ["trainer.lerning_rate=1", "recipe=quickstart"],
    "recipe=quickstart --cfg job": ["recipe=quickstart", "--cfg", "job"],
}
"""What gemma_ft answers before anything is loaded."""
PEER_ANSWERS = {"trl": ["sft", "--help"], "llamafactory": ["version"], "litgpt": ["--help"]}
FIRST_STEP = ["recipe=quickstart", "trainer.max_steps=1", "export=none", "--overwrite"]
AS_TRL = ["quantization=none", "trainer.sample_prompt=null", "dataset.eval_fraction=0", "name=as-trl"]
"""Without 4 bits, and without the answer and the held-out loss before training."""
_ROWS = 2153
"""As many chats as quickstart trains on."""
OUR_LINE, TRL_LINE = re.compile(r"^ *step 1/1 .*loss"), re.compile(r"'loss':")

Found = dict[str, float]
Sides = Mapping[str, Callable[[int], Found]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where commands run."""

    work: Path
    peers: Path | None

    def ours(self, words: Sequence[str]) -> list[str | Path]:
        """Return a command line of gemma_ft."""
        return [sys.executable, "-m", "gemma_ft", *words]

    def peer(self, name: str) -> Path | None:
        """Return the command line of a peer."""
        return find_peer(self.peers, name)


def answers(place: Place) -> Sides:
    """Return what times the first answers of each program."""
    sides = {f"gemma_ft {name}": _answer(place, place.ours(words)) for name, words in ANSWERS.items()}
    for name, words in PEER_ANSWERS.items():
        if command := place.peer(name):
            sides[" ".join([command.name, *words])] = _answer(place, [command, *words])
    return sides


def _answer(place: Place, command: Sequence[str | Path]) -> Callable[[int], Found]:
    refused = ["sh", "-c", '"$@"; test $? -eq 2', "sh"] if "trainer.lerning_rate=1" in command else []

    def measure(_: int) -> Found:
        run = run_command([*refused, *command], folder=place.work, environment=_OFFLINE)
        return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "peak_mib": run.peak_mib}

    return measure


def first_step(place: Place) -> Sides:
    """Return what times each program from its command line to the line of its first step."""
    sides = {
        "gemma_ft quickstart": _step(place, place.ours(FIRST_STEP), OUR_LINE),
        "gemma_ft LoRA": _step(place, place.ours([*FIRST_STEP, *AS_TRL]), OUR_LINE),
    }
    if trl := place.peer("trl"):
        sides["trl sft LoRA"] = _step(place, [trl, "sft", *_trl_words(place)], TRL_LINE)
    return sides


def _trl_words(place: Place) -> list[str]:
    """Write rows, and return the options of `trl sft` that do the same."""
    from gemma_ft.modeling.tiny import load_tiny

    rows = place.work / "rows"
    rows.mkdir()
    write_conversations(rows / "train.jsonl", _ROWS, short=True)
    options = f"""--model_name_or_path {load_tiny()} --dataset_name {rows} --output_dir {place.work / "trl"}
        --use_peft --lora_r 16 --lora_alpha 32 --lora_target_modules all-linear
        --learning_rate 5e-3 --max_steps 1 --logging_steps 1 --save_strategy no --max_length 256 --packing
        --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --gradient_checkpointing false
        --use_cpu --bf16 false --report_to none"""
    return options.split()


def _step(place: Place, command: Sequence[str | Path], line: re.Pattern[str]) -> Callable[[int], Found]:
    def measure(_: int) -> Found:
        run = run_command(command, folder=place.work, environment=_OFFLINE)
        first = next(one for one in run.lines if line.search(one.text))
        return {"seconds": first.seconds, "cpu_seconds": first.cpu_seconds, "peak_mib": first.resident_mib}

    return measure


_OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
PARTS: dict[str, Callable[[Place], Sides]] = {"answers": answers, "first step": first_step}


def main() -> None:
    """Take the measurements that are asked for, and write each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments (benchmarks/peers.py)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    for line in say_missing(asked.peers, list(PEER_ANSWERS)):
        print(line, file=sys.stderr)
    for part in asked.parts:
        with tempfile.TemporaryDirectory() as work:
            place = Place(work=Path(work), peers=asked.peers)
            about: dict[str, Any] = {"machine": describe_machine(), "versions": _versions(place)}
            sides = PARTS[part](place)
            for side in sides.values():
                side(-1)
            runs = take_turns(sides, asked.repeats, lambda text: print(text, file=sys.stderr))
        draw(keep_part("start", part, about | {"runs": _rounded(runs)}, page, asked.results), asked.results)


def _versions(place: Place) -> dict[str, dict[str, str]]:
    pythons = {"gemma_ft": Path(sys.executable)}
    pythons |= {name: command.with_name("python") for name in PEER_ANSWERS if (command := place.peer(name))}
    return {name: versions_of(python, PACKAGES[name]) for name, python in pythons.items()}


def _rounded(runs: Mapping[str, Sequence[Found]]) -> dict[str, list[Found]]:
    return {
        side: [{name: round(value, 3) for name, value in one.items()} for one in found]
        for side, found in runs.items()
    }


if __name__ == "__main__":
    main()
