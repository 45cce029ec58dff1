"""Measure how long the program takes to answer before it trains: `python benchmarks/start.py`.

Each line is the best of several starts of a process of its own, in seconds.
"""

import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "help": ["--help"],
    "every key": ["train", "--help"],
    "recipes": ["recipes"],
    "a config error": ["trainer.lerning_rate=1", "recipe=quickstart"],
    "the composed config": ["recipe=quickstart", "--cfg", "job"],
}


def best_of(words: list[str], times: int = 5) -> float:
    """Start the program several times and return the shortest time in seconds."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(times):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "gemma_ft", *words], cwd=folder, capture_output=True, check=False
            )
            seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    for name, words in COMMANDS.items():
        print(f"{best_of(words):6.2f}  {name}: {' '.join(words)}")
