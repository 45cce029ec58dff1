"""What the first lines of a launch file tell its operator."""

from pathlib import Path
from textwrap import wrap

from gemma_ft import __version__
from gemma_ft.launching.job import Job
from gemma_ft.launching.text import bash_word, comment


def build_header(job: Job, *, submit: str, checked: str, prepare: tuple[str, ...]) -> str:
    """Write the comment at the top of a file.

    Args:
        job: The run.
        submit: The command that submits the file.
        checked: What the form of such a file was checked with.
        prepare: What has to be there before it is submitted, beside the files that the run reads.
    """
    lines = [
        f"{job.name}: {job.nodes} nodes with {job.gpus} GPUs each, {job.processes} processes ({job.method}).",
        f"Written by gemma_ft {__version__}, which the nodes need too.",
        f"Submit it:  {submit}",
        *wrap(
            checked, 100, initial_indent="Checked:    ", subsequent_indent=" " * 12, break_on_hyphens=False
        ),
        "Before it is submitted:",
        *(f"- {line}" for line in (*prepare, *_place_lines(job))),
        "The words below are those of the command line. Change `run` with them: it is the run folder that",
        "they lead to, whose status.json says what follows when the processes end.",
    ]
    return comment("\n".join(lines))


def _place_lines(job: Job) -> list[str]:
    """Say of each file of this machine how it gets to the nodes."""
    lines = []
    for place in job.places:
        path = Path(place.partition("=")[2]).expanduser()
        must = "must be at this place on every node" if path.is_absolute() else "must be in the shared folder"
        lines.append(f"{bash_word(place)} {must}.")
    if Path(job.run_dir).is_absolute():
        lines.append(
            f"{bash_word(job.run_dir)}, the run folder, must be on storage that every node writes to."
        )
    return lines
