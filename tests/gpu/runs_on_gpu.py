"""Many runs in one process, which starts up longer than it trains: python runs_on_gpu.py runs.json.

The file holds a list of command lines, each a list of words for the program's own entry.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from gemma_ft.cli import main


def run_all(file: Path) -> int:
    """Give the lines of a file to the program, one after the other, up to one that fails."""
    for words in json.loads(file.read_text(encoding="utf-8")):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if code := main(words):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
