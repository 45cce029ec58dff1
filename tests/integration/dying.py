"""The program with one process that is killed at a place, or hangs there, as STOP_AT, KILLED and HANGING say.

The file KILLED_AT tells when. Run by a launcher as `-m gemma_ft` is run; with GPUS, as on a machine with
so many.
"""

import os
import signal
import sys
import time
from pathlib import Path

from gemma_ft.cli import main
from gemma_ft.training import data, launch, run

PLACE = os.environ.get("STOP_AT", "")


def reached(place: str) -> None:
    """End here, or hang, if this process is told to."""
    if place != PLACE or "RANK" not in os.environ:
        return
    if os.environ["RANK"] == os.environ.get("KILLED"):
        Path(os.environ["KILLED_AT"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == os.environ.get("HANGING"):
        while True:
            time.sleep(600)  # deaf to signals while training, as in a collective operation of NCCL


def stop_in(module: object, name: str, place: str) -> None:
    """Have a function say where the run is, before it does its work."""
    before = getattr(module, name)

    def stopped(*args: object, **kwargs: object) -> object:
        reached(place)
        return before(*args, **kwargs)

    setattr(module, name, stopped)


def stop_in_steps() -> None:
    """Have the trainer say which step it begins."""
    from gemma_ft.training import checkpoints, trainer

    begin = trainer.RunTrainer.training_step
    save = trainer.RunTrainer._save_checkpoint

    def step(self: trainer.RunTrainer, *args: object, **kwargs: object) -> object:
        reached(f"step {self.state.global_step}")
        return begin(self, *args, **kwargs)

    def saving(self: trainer.RunTrainer, *args: object, **kwargs: object) -> object:
        reached(f"save {self.state.global_step}")
        return save(self, *args, **kwargs)

    trainer.RunTrainer.training_step = step
    trainer.RunTrainer._save_checkpoint = saving
    stop_in(trainer, "publish_checkpoint", "publish")
    stop_in(checkpoints, "check_states", "publish states")


if __name__ == "__main__":
    if "GPUS" in os.environ:
        launch.count_gpus = lambda: int(os.environ["GPUS"])
        launch.PROGRAM = (os.path.abspath(__file__),)
    stop_in(run, "begin_run", "start")
    stop_in(run, "prepare_rows", "rows")
    stop_in(data, "describe_start", "describe")
    if PLACE.startswith(("step", "save", "publish")):
        stop_in_steps()
    if PLACE == "model":
        from gemma_ft.training import build

        stop_in(build, "load_model", "model")
    sys.exit(main())
