"""The program, which writes down what each process does: WATCHED is the folder.

`rows-RANK` appears when a process has its rows; `group-RANK` holds how many had theirs when it formed process
groups; `steps-RANK.jsonl` has a line for each row that it trains on, with the optimizer step.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from gemma_ft.cli import main
from gemma_ft.data import prepare

WATCHED, RANK = Path(os.environ["WATCHED"]), os.environ.get("RANK", "0")
prepare_data, init_process_group = prepare.prepare_data, torch.distributed.init_process_group


def watch_rows(*args: object, **kwargs: object) -> object:
    """Prepare rows, without a process group; the first process takes longest."""
    assert not torch.distributed.is_initialized()
    prepared = prepare_data(*args, **kwargs)
    time.sleep(2 if RANK == "0" else 0)
    (WATCHED / f"rows-{RANK}").touch()
    return prepared


def watch_group(*args: object, **kwargs: object) -> None:
    """Form process groups."""
    (WATCHED / f"group-{RANK}").write_text(str(len(list(WATCHED.glob("rows-*")))))
    init_process_group(*args, **kwargs)


def watch_steps() -> None:
    """Write down the rows of each step."""
    from gemma_ft.training.trainer import RunTrainer

    step = RunTrainer.training_step

    def watch_step(self: RunTrainer, model: object, inputs: dict, *args: object, **kwargs: object) -> object:
        with (WATCHED / f"steps-{RANK}.jsonl").open("a") as file:
            learned = [
                row
                for row, labels in zip(*map(inputs.get, ("input_ids", "labels")), strict=True)
                if (labels != -100).any()
            ]
            for row in learned:
                name = hashlib.sha256(str([token for token in row.tolist() if token]).encode()).hexdigest()
                print(json.dumps([self.state.global_step, name]), file=file)
        return step(self, model, inputs, *args, **kwargs)

    RunTrainer.training_step = watch_step


if __name__ == "__main__":
    prepare.prepare_data, torch.distributed.init_process_group = watch_rows, watch_group
    watch_steps()
    sys.exit(main())
