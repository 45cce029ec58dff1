"""Runs of a side, and what their figures come to."""

from pathlib import Path
from statistics import median
from typing import Any

from parts.processes import CommandError, Run, run_command
from parts.turns import ratios, spread

from step_parts.cases import Case
from step_parts.making import TINY_ROWS, Place
from step_parts.sides import ENVIRONMENT, OURS, SIDES, Job, program, steps_of

_SECONDS = 900


def measure(name: str, case: Case, steps: int, place: Place, peers: Path | None) -> dict[str, Any]:
    """Run a case on a side and return what its steps took, the first one left out.

    Raises:
        CommandError: The side failed, or said less steps than it was asked for.
    """
    job, run = _run(name, case, steps, place, peers)
    lines = steps_of(SIDES[name], run)
    first, last = lines[0], lines[-1]
    seconds, cpu = last.seconds - first.seconds, last.cpu_seconds - first.cpu_seconds
    tokens = SIDES[name].read_tokens(job, run)
    return {
        "seconds_a_step": round(seconds / (steps - 1), 4),
        "cpu_seconds_a_step": round(cpu / (steps - 1), 4),
        "tokens": tokens,
        "tokens_a_second": round(sum(tokens[1:]) / seconds, 2) if tokens else None,
        "peak_mib": round(last.peak_mib, 1),
        "seconds_to_first_step": round(first.seconds, 2),
        "losses": SIDES[name].read_losses(job, run),
    }


def measure_loaded(name: str, shape: str, place: Place, peers: Path | None) -> float:
    """Return the resident MiB of a side with the model loaded.

    Taken when it logs the first of two steps, of LoRA on one row of some 20 tokens, by when whatever loading
    needed besides is given back. (litgpt's schedule divides by the steps that come after its first.)
    """
    case = Case(
        says="",
        shape=shape,
        rows=TINY_ROWS,
        max_length=64,
        micro_batch=1,
        accumulation=1,
        steps=2,
    )
    _, run = _run(name, case, case.steps, place, peers)
    return round(steps_of(SIDES[name], run)[0].resident_mib, 1)


def _run(name: str, case: Case, steps: int, place: Place, peers: Path | None) -> tuple[Job, Run]:
    job = Job(
        case=case,
        model=place.model(case.shape),
        rows=place.rows(case.rows),
        folder=place.run(name),
        steps=steps,
    )
    command = program(name, peers)
    assert command is not None
    run = run_command(
        SIDES[name].command(job, command), environment=ENVIRONMENT, folder=job.folder, seconds=_SECONDS
    )
    if (found := len(steps_of(SIDES[name], run))) != steps:
        raise CommandError(f"{name} told of {found} steps of {steps}:\n{run.tail()}")
    return job, run


def compare(runs: dict[str, list[dict[str, Any]]], loaded: dict[str, float]) -> dict[str, Any]:
    """Summarise the runs of a case, and compare ours with each peer.

    Args:
        runs: By side, those of each repeat.
        loaded: MiB of each side with the model loaded.
    """
    ours_tokens = median(sum(run["tokens"][1:]) for run in runs[OURS])
    for side in runs.values():
        for run in side:  # a side that does not count learns the same rows
            steps = len(run["losses"]) - 1
            run["tokens_a_second"] = run["tokens_a_second"] or round(
                ours_tokens / (run["seconds_a_step"] * steps), 2
            )
    sides = {name: _summarise(found, loaded[name]) for name, found in runs.items()}
    against = {
        name: _compare_two(runs[OURS], found, sides[OURS], sides[name])
        for name, found in runs.items()
        if name != OURS
    }
    return {"sides": sides, "against": against, "runs": runs}


def _summarise(found: list[dict[str, Any]], loaded: float) -> dict[str, Any]:
    return {
        "tokens_a_second": spread([run["tokens_a_second"] for run in found], 4),
        "cpu_seconds_a_step": spread([run["cpu_seconds_a_step"] for run in found]),
        "mib_loaded": loaded,
        "mib_above_loaded": spread([max(run["peak_mib"] - loaded, 0.1) for run in found]),
    }


def _compare_two(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], our: dict[str, Any], their: dict[str, Any]
) -> dict[str, Any]:
    speeds = ([run["tokens_a_second"] for run in side] for side in (ours, theirs))
    cpu = ([run["cpu_seconds_a_step"] for run in side] for side in (theirs, ours))
    same_rows = ours[0]["tokens"] == theirs[0]["tokens"]
    gaps = [abs(a - b) for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True)]
    return {
        "times_as_fast": ratios(*speeds),
        "times_as_fast_by_cpu_seconds": ratios(*cpu),
        "memory_of_theirs": round(our["mib_above_loaded"]["median"] / their["mib_above_loaded"]["median"], 3),
        "same_tokens_in_each_step": same_rows,
        "largest_gap_of_losses": float(f"{max(gaps):.2g}") if same_rows else None,
    }
