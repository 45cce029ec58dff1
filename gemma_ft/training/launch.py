"""One process a GPU, started by the program itself where `parallel=ddp` asks for it."""

import logging
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gemma_ft.config.compose import config_yaml
from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import TrainingError

logger = logging.getLogger("gemma_ft")

SHUTDOWN_SECONDS = 300
"""Time to stop in, before processes are killed: the 30 s of torchrun are too few for a large checkpoint."""


def processes_to_launch(config: RunConfig) -> int:
    """Return how many processes this one should start; 0 where it trains itself, or a launcher has begun."""
    if config.parallel.method is not ParallelMethod.ddp or "WORLD_SIZE" in os.environ:
        return 0
    gpus = count_gpus()
    return gpus if gpus > 1 else 0


def count_gpus() -> int:
    """Count the GPUs in sight."""
    import torch

    return torch.cuda.device_count()


def launch(config: RunConfig, processes: int, *flags: str) -> None:
    """Run a recipe in several processes of this machine, through torchrun's own launcher.

    Args:
        config: The whole run.
        processes: How many.
        flags: Flags of the train command, passed on.

    Raises:
        SystemExit: The run failed or was stopped, and has said so itself; with its exit code.
        TrainingError: A process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it in one line
    logger.info("starting %d processes, one a GPU", processes)
    with TemporaryDirectory(prefix="gemma_ft-") as folder:
        recipe = Path(folder) / "launched.yaml"
        recipe.write_text(config_yaml(config), encoding="utf-8")
        words = ["--standalone", "--nproc-per-node", str(processes), "-m", "gemma_ft", f"recipe={recipe}"]
        try:
            run(parse_args([*words, *flags]))  # type: ignore[no-untyped-call]
        except SignalException as stop:
            sys.exit(128 + int(stop.sigval))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode > 0:
                sys.exit(failure.exitcode)
            raise TrainingError(
                f"process {rank} of {processes} was killed by {signal.Signals(-failure.exitcode).name}. "
                f"The same line goes on from the last checkpoint in {config.output_dir}."
            ) from None
