"""A batch script for Slurm (`sbatch`)."""

import re

from gemma_ft.errors import ConfigError
from gemma_ft.launching.header import build_header
from gemma_ft.launching.job import Job
from gemma_ft.launching.text import bash_lines, bash_word, fill

SUFFIX = ".sbatch"

_CHECKED = (
    "its like was run by Slurm 22.05 with two nodes on one machine of CPUs: a stop before the time limit, "
    "preemption, a killed process, a lost node, requeue, scancel. GPUs and a real network were not."
)
_EARLY_SECONDS = 90
"""Slurm sends a signal up to a minute early or late, and torchrun needs some seconds beside its workers."""
_NAME = re.compile(r"[\w.,:@/+-]+", re.ASCII)
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", re.ASCII)


def submit_command(job: Job, file: str) -> str:
    """Return the command that submits a file."""
    return f"sbatch {bash_word(file)}"


def render(
    job: Job, *, file: str, python: str, partition: str | None, account: str | None, time: str | None
) -> str:
    """Write the script.

    Args:
        job: The run.
        file: What it will be called.
        python: The interpreter of the nodes that has gemma_ft.
        partition: Where to queue, or the cluster's default.
        account: Who pays, or the user's default.
        time: The time limit in Slurm's own form, or the partition's.

    Raises:
        ConfigError: A flag's value is none of Slurm's.
    """
    lead = job.stop_seconds + _EARLY_SECONDS
    problems = [*_name_problems("--partition", partition), *_name_problems("--account", account)]
    if time is not None and (seconds := _seconds(time)) is None:
        problems.append(
            f"--time={time} is no time of Slurm. Write e.g. --time=12:00:00 or --time=2-00:00:00."
        )
    elif time is not None and seconds and seconds <= 2 * lead:  # none is no limit
        problems.append(
            f"--time={time} leaves no time to train: a stop is asked for {lead} s before its end. "
            "Give more, or lower --stop-seconds."
        )
    if problems:
        raise ConfigError(*problems)
    header = build_header(job, submit=submit_command(job, file), checked=_CHECKED, prepare=_prepare(job))
    return fill(
        "slurm.sh",
        header=header,
        job_name=job.plain_name,
        nodes=job.nodes,
        gpus=job.gpus,
        options=_options(job, partition, account, time),
        stop_seconds=job.stop_seconds,
        lead_seconds=lead,
        python=bash_word(python),
        run_dir=bash_word(job.run_dir),
        words=bash_lines(job.words),
        node=fill("node.sh"),
    )


def _prepare(job: Job) -> tuple[str, ...]:
    shared = "Call sbatch in a folder that every node sees: relative paths begin there, the run folder's too."
    if not job.secrets:
        return (shared,)
    names = " and ".join(job.secrets)
    return shared, f"Have {names} in the environment that sbatch is called in, or be logged in on the nodes."


def _options(job: Job, partition: str | None, account: str | None, time: str | None) -> str:
    whole = job.cpus is None and job.memory is None
    given = {
        "partition": partition,
        "account": account,
        "time": time,
        "cpus-per-task": job.cpus,
        "mem": "0" if whole else f"{job.memory}G" if job.memory else None,
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in given.items() if value is not None]
    if whole:
        lines.append("# Whole nodes; --cpus and --memory of `launch` share them:\n#SBATCH --exclusive")
    return "\n".join(lines)


def _name_problems(flag: str, name: str | None) -> list[str]:
    if name is None or _NAME.fullmatch(name):
        return []
    return [f"{flag}={name} is no name of Slurm. Give it as `sinfo` or `sacctmgr` list it."]


def _seconds(time: str) -> int | None:
    """Read minutes, minutes:seconds, hours:minutes:seconds, or days-hours[:minutes[:seconds]]."""
    found = _TIME.fullmatch(time)
    if found is None:
        return None
    parts = [int(part) for part in found.group("first", "second", "third") if part is not None]
    if found["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: parts}[len(parts)]
    return (hours * 60 + minutes) * 60 + seconds
