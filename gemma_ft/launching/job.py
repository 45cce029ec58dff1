"""What every cluster engine needs to be told of a run, checked before a line is written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma_ft.config.dataset import row_parts
from gemma_ft.config.model_files import BUNDLED_TINY
from gemma_ft.config.rows import DataSource
from gemma_ft.config.schema import ParallelMethod, RunConfig, TrackingMethod
from gemma_ft.errors import ConfigError

_LONGEST_NAME = 40
"""Characters; Kubernetes adds its own to a name, and allows 63 in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run on several machines, in no engine's words."""

    name: str
    """The run's name."""
    words: tuple[str, ...]
    """The overrides as they were given."""
    run_dir: str
    """The run folder; a relative one begins in the folder that the job works in."""
    nodes: int
    """Machines."""
    gpus: int
    """GPUs of each, with one process for each."""
    method: str
    """How the processes share the work."""
    places: tuple[str, ...] = ()
    """Files and folders of this machine that the run reads, as `key=value`."""
    secrets: tuple[str, ...] = ()
    """Environment variables that hold what the run may log in with."""
    stop_seconds: int = 600
    """Time that a stop may take: the rest of a step, and a checkpoint."""
    cpus: int | None = None
    """Processors of each machine; none: the engine's or the whole machine's."""
    memory: int | None = None
    """Memory of each machine in GiB; none: as above."""

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.gpus

    @property
    def plain_name(self) -> str:
        """The name as a label of DNS, which engines ask for."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        name = name if name[:1].isalpha() else f"run-{name}"
        return name[:_LONGEST_NAME].rstrip("-")


def build_job(
    config: RunConfig,
    words: list[str],
    *,
    nodes: int,
    gpus: int,
    stop_seconds: int = 600,
    cpus: int | None = None,
    memory: int | None = None,
) -> Job:
    """Describe a run on a number of machines.

    Args:
        config: What the words compose to.
        words: The overrides, as the nodes are to be given them.
        nodes: Machines.
        gpus: GPUs of each.
        stop_seconds: Time that a stop may take.
        cpus: Processors of each machine, or none.
        memory: Memory of each machine in GiB, or none.

    Raises:
        ConfigError: With every problem of running this configuration on so many processes.
    """
    sizes = {
        "--nodes": nodes,
        "--gpus": gpus,
        "--stop-seconds": stop_seconds,
        "--cpus": cpus,
        "--memory": memory,
    }
    problems = [f"{flag}={n} must be at least 1." for flag, n in sizes.items() if n is not None and n < 1]
    problems = problems or list(_find_problems(config, nodes, gpus))
    if problems:
        raise ConfigError(*problems)
    return Job(
        name=config.name,
        words=tuple(words),
        run_dir=str(Path(config.output_dir)),
        nodes=nodes,
        gpus=gpus,
        method=_method(config, nodes * gpus).value,
        places=tuple(_places(config, words)),
        secrets=tuple(_secrets(config)),
        stop_seconds=stop_seconds,
        cpus=cpus,
        memory=memory,
    )


def _method(config: RunConfig, processes: int) -> ParallelMethod:
    if config.parallel.method is not ParallelMethod.auto:
        return config.parallel.method
    return ParallelMethod.single if processes == 1 else ParallelMethod.ddp


def _find_problems(config: RunConfig, nodes: int, gpus: int) -> Iterator[str]:
    """List, in the words of training, what it would refuse on so many processes."""
    processes, trainer, parallel = nodes * gpus, config.trainer, config.parallel
    if parallel.method is ParallelMethod.single and processes > 1:
        yield (f"parallel=single cannot use the launcher's {processes} processes. Use parallel=ddp or fsdp.")
    if parallel.method is ParallelMethod.ddp and processes == 1:
        yield (
            "parallel=ddp needs two processes or more, but --nodes=1 --gpus=1 is one. "
            "Use parallel=auto for one device."
        )
    share = trainer.micro_batch_size * processes
    if trainer.global_batch_size % share:
        yield (
            f"trainer.global_batch_size={trainer.global_batch_size} is not divisible by {share} "
            f"(trainer.micro_batch_size={trainer.micro_batch_size} x {processes} processes). "
            f"Make it a multiple of {share}."
        )
    size = parallel.dp_shard_size
    if size is not None and processes % size:
        yield (
            f"parallel.dp_shard_size={size} does not divide the {processes} processes into whole groups. "
            f"Give a divisor of {processes}, or leave it out to share over all."
        )


def _places(config: RunConfig, words: list[str]) -> Iterator[str]:
    """Name what this machine has that the cluster must have too."""
    for word in words:
        key, _, value = word.partition("=")
        if key == "recipe" and ("/" in value or value.endswith((".yaml", ".yml"))):
            yield f"recipe={value}"
    if "--config-dir" in words:
        yield f"--config-dir={words[-1]}"  # the last two words, as the command gives them
    model = config.model.path
    if model != BUNDLED_TINY and Path(model).expanduser().exists():
        yield f"model.path={model}"
    for prefix, rows in row_parts(config.dataset).items():
        if rows.source is DataSource.local:
            yield f"{prefix}.path={rows.path}"
    if config.adapter.path:
        yield f"adapter.path={config.adapter.path}"


def _secrets(config: RunConfig) -> Iterator[str]:
    """Name the variables of the hub's and the tracker's accounts that the run may ask for."""
    model, sources = config.model.path, [rows.source for rows in row_parts(config.dataset).values()]
    on_hub = model != BUNDLED_TINY and not Path(model).expanduser().exists()
    if on_hub or DataSource.hub in sources:
        yield "HF_TOKEN"
    if config.tracking.method is TrackingMethod.wandb:
        yield "WANDB_API_KEY"
