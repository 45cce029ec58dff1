"""Measure how fast rows are prepared, against TRL's own preparation, and what memory that takes.

Both read the same JSON Lines of conversations and end with packed, masked rows of at most 2048 tokens. Every
measurement is a process of its own; the two sides take turns. See benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from conversations import write_conversations

_MAX_LENGTH = 2048
_SEED = 1
OURS, TRL, TRL_PARALLEL = "gemma_ft", "trl", "trl with dataset_num_proc"
_PACKAGES = ("gemma_ft", "datasets", "numpy", "pyarrow", "tokenizers", "torch", "transformers", "trl")


def ours(data: Path, tokenizer: Any) -> tuple[Callable[[], Any], Callable[[Any], dict[str, int]]]:
    """Return how gemma_ft prepares the rows of a file, reading included, and how its result is counted."""
    from gemma_ft.config.dataset import DatasetConfig
    from gemma_ft.data.prepare import prepare_data

    import_module("trl.data_utils")  # packing needs it; TRL's own clock starts after its imports too
    dataset = DatasetConfig(path=str(data), eval_fraction=0)

    def prepare() -> Any:
        return prepare_data(dataset, tokenizer=tokenizer, max_length=_MAX_LENGTH, seed=_SEED, packing=True)

    def count(prepared: Any) -> dict[str, int]:
        facts = prepared.facts
        names = {"rows": "rows_train", "tokens": "tokens", "trained_tokens": "trained_tokens"}
        counts = {name: facts[key] for name, key in names.items()}
        return counts | {"sequences": prepared.train.num_rows}

    return prepare, count


def trls(
    data: Path, tokenizer: Any, model_folder: str, processes: int | None
) -> tuple[Callable[[], Any], Callable[[Any], dict[str, int]]]:
    """Return how TRL's SFTTrainer prepares rows, and how its result is counted.

    It prepares them while it is built; only that part of its building is returned. The file is read already.
    """
    import datasets
    import pyarrow.compute as pc
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer
    from trl.chat_template_utils import gemma_chat_template

    parts: list[Any] = []

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            parts[:] = [super()._prepare_dataset, args, kwargs]
            return args[0]

    rows = datasets.load_dataset("json", data_files=str(data), split="train")
    tokenizer.chat_template = gemma_chat_template  # the one whose masks TRL knows how to make
    arguments = SFTConfig(
        output_dir=str(data.parent / "trl"),
        max_length=_MAX_LENGTH,
        packing=True,
        packing_strategy="bfd",
        assistant_only_loss=True,
        dataset_num_proc=processes,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    Trainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    method, args, kwargs = parts

    def count(packed: Any) -> dict[str, int]:
        table = packed.data
        learned = pc.not_equal(pc.list_flatten(table["labels"]), -100)
        counts = {"rows": len(pc.list_flatten(table["seq_lengths"])), "tokens": len(learned)}
        return counts | {"trained_tokens": pc.sum(learned).as_py(), "sequences": len(packed)}

    return lambda: method(*args, **kwargs), count


def run_side(side: str, data: Path, tokenizer_folder: str, model_folder: str) -> None:
    """Prepare in this process; print that the clock starts, then what was measured."""
    import datasets
    from transformers import AutoTokenizer

    from gemma_ft.families import load_chat_template

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = tokenizer.chat_template or load_chat_template()
    processes = os.cpu_count() if side == TRL_PARALLEL else None
    sides = {OURS: lambda: ours(data, tokenizer)}
    prepare, count = sides.get(side, lambda: trls(data, tokenizer, model_folder, processes))()
    print("ready", flush=True)
    start, busy = time.perf_counter(), sum(os.times()[:4])
    prepared = prepare()
    seconds, busy = time.perf_counter() - start, sum(os.times()[:4]) - busy
    print("done", flush=True)
    said = {"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2), **count(prepared)}
    print(json.dumps(said), flush=True)


class Memory(threading.Thread):
    """Watches the memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        import psutil

        super().__init__(daemon=True)
        self._process, self._gone = psutil.Process(pid), psutil.Error
        self.peak = self.private = 0.0
        self.stopped = threading.Event()

    def read(self) -> tuple[float, float]:
        """Return MB in use, and those of them that are no pages of a file."""
        used = private = 0
        with suppress(self._gone):
            for process in (self._process, *self._process.children(recursive=True)):
                with suppress(self._gone):
                    info = process.memory_info()
                    used += info.rss
                    private += info.rss - getattr(info, "shared", 0)
        return used / 2**20, private / 2**20

    def run(self) -> None:
        """Keep the highest values seen."""
        while not self.stopped.wait(0.05):
            now, private = self.read()
            self.peak, self.private = max(self.peak, now), max(self.private, private)


def measure(side: str, data: Path, folders: list[str], cache: Path) -> dict[str, Any]:
    """Run one side in a process of its own, with a cache of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"},
        "XDG_CACHE_HOME": str(cache),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    words = [sys.executable, __file__, "--side", side, str(data), *folders]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    memory = Memory(process.pid)
    before, result = (0.0, 0.0), {}
    for line in process.stdout:  # the libraries may print lines of their own
        if line == "ready\n":
            before = memory.read()
            memory.start()
        elif line == "done\n":
            memory.stopped.set()
        elif line.startswith('{"seconds"'):
            result = json.loads(line)
    if process.wait() or not result:
        sys.exit(f"{side} failed on {data}")
    return {
        "side": side,
        **result,
        "tokens_per_second": round(result["tokens"] / result["seconds"]),
        "mb_before": round(before[0]),
        "mb_peak": round(memory.peak),
        "mb_peak_private": round(memory.private),
    }


def measure_tokenizer(
    folder: str, model_folder: str, work: Path, asked: argparse.Namespace
) -> dict[str, Any]:
    """Take all measurements with one tokenizer."""
    from transformers import AutoTokenizer

    folders, runs = [folder, model_folder], []

    def take(side: str, rows: int, *, warm: bool, repeat: int = 0) -> None:
        data, cache = work / f"{rows}.jsonl", work / "cache" / side
        if not warm:
            shutil.rmtree(cache, ignore_errors=True)
        found = measure(side, data, folders, cache)
        runs.append({"rows_in_file": rows, "repeat": repeat, "cache": "warm" if warm else "cold", **found})
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)

    for repeat in range(asked.repeats):
        for side in (OURS, TRL) if repeat % 2 == 0 else (TRL, OURS):
            take(side, asked.pair_rows, warm=False, repeat=repeat)
    take(TRL_PARALLEL, asked.pair_rows, warm=False)
    take(OURS, asked.pair_rows, warm=True)
    take(TRL, asked.pair_rows, warm=True)
    take(OURS, asked.rows, warm=False)
    take(OURS, asked.rows, warm=True)
    take(TRL, asked.trl_rows, warm=False)
    return {"words": len(AutoTokenizer.from_pretrained(folder)), **summarise(runs, asked), "runs": runs}


def summarise(runs: list[dict[str, Any]], asked: argparse.Namespace) -> dict[str, Any]:
    """Compare the two sides within each pair."""
    pairs = runs[: 2 * asked.repeats]
    speeds = [
        {run["side"]: run["tokens_per_second"] for run in pairs if run["repeat"] == repeat}
        for repeat in range(asked.repeats)
    ]
    ratios = [round(speed[OURS] / speed[TRL], 2) for speed in speeds]
    return {"times_as_fast": round(median(ratios), 2), "times_as_fast_by_repeat": ratios}


def describe_machine() -> dict[str, Any]:
    """Say what this was measured on and with."""
    import psutil

    cpu = platform.processor()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def main() -> None:
    """Generate the data, take all measurements and write them."""
    if sys.argv[1:2] == ["--side"]:
        run_side(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the long run of gemma_ft")
    parser.add_argument("--trl-rows", type=int, default=20_000, help="rows of the long run of TRL")
    parser.add_argument("--pair-rows", type=int, default=10_000, help="rows of the runs that are compared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer", action="append", default=[], metavar="[NAME=]FOLDER")
    parser.add_argument("--work", help="where data and caches go (several GB; otherwise a temporary folder)")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    from gemma_ft.modeling.tiny import load_tiny

    tiny = str(load_tiny())
    named = [item.rpartition("=") for item in asked.tokenizer or [f"bundled={tiny}"]]
    with tempfile.TemporaryDirectory(dir=asked.work) as work:
        for rows in {asked.rows, asked.trl_rows, asked.pair_rows}:
            write_conversations(Path(work) / f"{rows}.jsonl", rows)
        results = describe_machine() | {
            "max_length": _MAX_LENGTH,
            "tokenizers": {
                name or folder: measure_tokenizer(folder, tiny, Path(work), asked)
                for name, _, folder in named
            },
        }
    text = json.dumps(results, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
