"""One process a GPU, started by the program itself where `parallel=ddp` or `parallel=fsdp` asks for it."""

import logging
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from gemma_ft.config.compose import config_yaml
from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import TrainingError
from gemma_ft.modeling.drivers import wants_cpu
from gemma_ft.runs import RunFolder
from gemma_ft.training.ending import record_death
from gemma_ft.training.launchers import check_alone
from gemma_ft.training.layout import check_shardable, count_gpus

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

logger = logging.getLogger("gemma_ft")

PROGRAM = ("-m", "gemma_ft")
"""What each process runs, in torchrun's words."""
SHUTDOWN_SECONDS = 300
"""Time to stop in after a signal: the 30 s of torchrun are too few for a large checkpoint.

Where a process has died, torchrun gives the others its 30 s whatever is asked for: there is nothing to save.
"""


def processes_to_launch(config: RunConfig) -> int:
    """Return how many processes this one should start; 0 where it trains itself, or a launcher has begun.

    Raises:
        ConfigError: Shards are asked for on a machine without a GPU, or others start this line as well.
    """
    method = config.parallel.method
    if method not in (ParallelMethod.ddp, ParallelMethod.fsdp) or "WORLD_SIZE" in os.environ:
        return 0
    check_alone()
    gpus = 0 if wants_cpu() else count_gpus()
    if method is ParallelMethod.fsdp:
        if not gpus:
            check_shardable("cpu")
        return gpus
    return gpus if gpus > 1 else 0


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
    logger.info("parallel=%s: starting %d process(es), one a GPU", config.parallel.method, processes)
    with TemporaryDirectory(prefix="gemma_ft-") as folder:
        recipe = Path(folder) / "launched.yaml"
        recipe.write_text(config_yaml(config), encoding="utf-8")
        words = ["--standalone", "--nproc-per-node", str(processes), *PROGRAM, f"recipe={recipe}"]
        try:
            run(parse_args([*words, *flags]))  # type: ignore[no-untyped-call]
        except SignalException as stop:
            sys.exit(128 + int(stop.sigval))
        except ChildFailedError as error:
            raise _explain(error, config, processes) from None


def _explain(error: "ChildFailedError", config: RunConfig, processes: int) -> BaseException:
    """Word what ended a run: what it has said itself, or the death of a process."""
    failures = error.failures.items()  # whole seconds tell their order; a death comes before what it causes
    rank, first = min(failures, key=lambda entry: (entry[1].timestamp, entry[1].exitcode > 0))
    if first.exitcode > 0:
        return SystemExit(first.exitcode)
    number = signal.Signals(-first.exitcode)
    why = ", as the system does where memory runs out" if number.name == "SIGKILL" else ""
    reason = f"process {rank} of {processes} was killed by {number.name}{why}"
    record_death(RunFolder(config.output_dir), reason)
    return TrainingError(f"{reason}. The same line goes on from the last checkpoint in {config.output_dir}.")
