"""Many runs in one launch: starting up takes longer than training a few steps.

    torchrun --standalone --nproc-per-node 2 many_runs.py runs.json

The file holds a list of command lines, each a list of words. Every process gives each of them to the
program's own entry, under `fsdp_on_cpus` and in process groups of its own, and leaves its `rank_facts`. The
line `["cut", RUN, OTHER, STEP]` copies a finished run as it was when it had saved a step, for a later line to
go on with.
"""

import gc
import json
import os
import shutil
import sys
from pathlib import Path

import fsdp_on_cpus  # noqa: F401 - has accelerate shard on CPUs
from accelerate.state import AcceleratorState, GradientState
from rank_facts import take_facts
from torch.distributed import TCPStore

from gemma_ft.cli import main
from gemma_ft.runs import RunFolder, Stage, State


def cut(whole: Path, other: Path, step: int) -> None:
    """Copy a finished run as it was when it had saved a step."""
    shutil.copytree(whole, other)
    run = RunFolder(other)
    for folder in (run.adapter, run.model, run.path / "merged"):
        shutil.rmtree(folder, ignore_errors=True)
    assert step in run.steps()
    for later in run.steps():
        if later > step:
            shutil.rmtree(run.step_folder(later))
    run.write_status(State.running, Stage.training)


def meet(number: int, launcher: TCPStore | None) -> TCPStore | None:
    """Have all processes begin run `number` together, with a store that holds no key of an earlier run.

    Args:
        number: Of the run.
        launcher: What the launcher's processes share; none where there is no launcher.

    Returns:
        What the first process must keep until the run ends.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.collect()
    if launcher is None:
        return None
    key, store = f"port of run {number}", None
    if os.environ["RANK"] == "0":
        store = TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True, wait_for_workers=False)
        launcher.set(key, str(store.port))
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", launcher.get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return store


def run_all(file: Path) -> int:
    """Give the lines of a file to the program, one after the other, up to one that fails."""
    take_facts()
    launcher = None
    if "WORLD_SIZE" in os.environ:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        launcher = TCPStore(*place, is_master=False)
    for number, words in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        kept = meet(number, launcher)  # the first process comes here once it has written all of a run
        if words[0] != "cut":
            if code := main(words):
                return code
        elif os.environ.get("RANK", "0") == "0":
            cut(Path(words[1]), Path(words[2]), int(words[3]))
        del kept
    return 0


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
