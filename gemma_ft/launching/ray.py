"""A Ray Train program (`ray job submit`)."""

from pathlib import Path
from pprint import pformat
from textwrap import indent

from gemma_ft.errors import ConfigError
from gemma_ft.launching.header import build_header
from gemma_ft.launching.job import Job
from gemma_ft.launching.text import bash_word, fill

SUFFIX = ".ray.py"

_CHECKED = (
    "its like was run by Ray 2.60 with two workers on one machine of CPUs, one of them killed. GPUs and "
    "several machines were not."
)


def submit_command(job: Job, file: str) -> str:
    """Return the command that submits a file, which the cluster's head reads under the same name."""
    return f"ray job submit -- python {bash_word(str(Path(file).absolute()))}"


def render(job: Job, *, file: str, shared_dir: str, use_gpu: bool = True) -> str:
    """Write the program.

    Args:
        job: The run.
        file: What it will be called.
        shared_dir: A folder that every node of the cluster sees.
        use_gpu: Whether a worker takes a GPU; tests have none.

    Raises:
        ConfigError: The shared folder is named from wherever a process happens to be.
    """
    if not Path(shared_dir).is_absolute():
        raise ConfigError(
            f"--shared-dir={shared_dir} must begin with /, since workers begin in folders of their own. "
            "Give the whole path that every node sees."
        )
    header = build_header(
        job, submit=submit_command(job, file), checked=_CHECKED, prepare=_prepare(job, shared_dir)
    )
    return fill(
        "ray.txt",
        header=header,
        name=repr(job.plain_name),
        shared=repr(shared_dir),
        run_dir=repr(job.run_dir),
        processes=job.processes,
        nodes=job.nodes,
        gpus=job.gpus,
        words=_list(job.words),
        use_gpu=use_gpu,
        resources=_resources(job, use_gpu=use_gpu),
    )


def _prepare(job: Job, shared_dir: str) -> tuple[str, ...]:
    lines = [
        f"Every node of the Ray cluster, its head too, must have gemma_ft and see {shared_dir}.",
        f"The head reads this file: write it to {shared_dir} with --output, or copy it to where the head is.",
        "A machine that is taken away gives Ray's workers no time to save: lower trainer.save_steps there.",
    ]
    if job.secrets:
        lines.append(
            f"Have {' and '.join(job.secrets)} in the environment that the nodes' `ray start` was given."
        )
    return tuple(lines)


def _list(words: tuple[str, ...]) -> str:
    return "[\n" + indent("".join(f"{word!r},\n" for word in words), " " * 4) + "]"


def _resources(job: Job, *, use_gpu: bool) -> str:
    if job.cpus is None and job.memory is None:
        return ""
    each: dict[str, float] = {"GPU": 1} if use_gpu else {}
    if job.cpus is not None:
        each["CPU"] = max(job.cpus // job.gpus, 1)
    if job.memory is not None:
        each["memory"] = job.memory * 2**30 // job.gpus
    return f", resources_per_worker={pformat(each)}"
