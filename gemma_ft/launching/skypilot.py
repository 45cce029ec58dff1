"""A task for SkyPilot's managed jobs (`sky jobs launch`)."""

import re

from gemma_ft.errors import ConfigError
from gemma_ft.launching.header import build_header
from gemma_ft.launching.job import Job
from gemma_ft.launching.text import bash_lines, bash_word, fill, yaml_block, yaml_text

SUFFIX = ".sky.yaml"

_CHECKED = (
    "its like was read by SkyPilot 0.14 (its schemas, Task.from_yaml), and its script run for two nodes on "
    "one machine; no cloud has run it."
)


def submit_command(job: Job, file: str) -> str:
    """Return the command that submits a file, with its secrets by name."""
    return " ".join(["sky jobs launch", *(f"--secret {name}" for name in job.secrets), bash_word(file)])


def render(job: Job, *, file: str, gpu_type: str, image: str, volume: str, python: str, spot: bool) -> str:
    """Write the task.

    Args:
        job: The run.
        file: What it will be called.
        gpu_type: The accelerator in SkyPilot's words, like H100.
        image: Container image that holds gemma_ft.
        volume: SkyPilot volume that all nodes can write to.
        python: The interpreter in the image.
        spot: Whether to take machines that can be taken away.

    Raises:
        ConfigError: A flag's value is none of SkyPilot's.
    """
    if not re.fullmatch(r"[\w.-]+", gpu_type, re.ASCII):
        raise ConfigError(f"--gpu-type={gpu_type} is no accelerator. Give its name alone, like H100.")
    submit = submit_command(job, file)
    header = build_header(job, submit=submit, checked=_CHECKED, prepare=_prepare(job, volume, spot))
    return fill(
        "skypilot.yaml",
        header=header,
        job_name=yaml_text(job.plain_name),
        nodes=job.nodes,
        gpus=job.gpus,
        gpu_type=gpu_type,
        image=yaml_text(f"docker:{image.removeprefix('docker:')}"),
        spot=str(spot).lower(),
        options=_options(job),
        volume=yaml_text(volume),
        secrets=_secrets(job),
        stop_seconds=job.stop_seconds,
        python=bash_word(python),
        run_dir=bash_word(job.run_dir),
        words=yaml_block(bash_lines(job.words), 2),
        node=yaml_block(fill("node.sh"), 2),
        keep=yaml_block(fill("keep.sh"), 2),
    )


def _prepare(job: Job, volume: str, spot: bool) -> tuple[str, ...]:
    lines = [f"`sky volumes ls` must list {volume}; what the run reads is put there."]
    if job.secrets:
        lines.append(
            f"Have {' and '.join(job.secrets)} in the environment: the command above passes them on."
        )
    if spot:
        lines.append("Machines that are taken away may give no time to save: lower trainer.save_steps.")
    return tuple(lines)


def _options(job: Job) -> str:
    sizes = {"cpus": job.cpus, "memory": job.memory}
    return "".join(f'  {name}: "{n}+"\n' for name, n in sizes.items() if n is not None).rstrip("\n")


def _secrets(job: Job) -> str:
    if not job.secrets:
        return ""
    return "\nsecrets:  # values come from the command that submits this\n" + "".join(
        f"  {name}: null\n" for name in job.secrets
    )
