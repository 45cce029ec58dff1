"""What a run folder allows: begin, go on, train on for more steps, export what is trained, or nothing."""

import logging
from dataclasses import dataclass
from typing import Any

from gemma_ft.config.compose import load_config
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import RunError
from gemma_ft.runs import RunFolder, Stage, Status
from gemma_ft.training.identity import STEPS, differing_keys
from gemma_ft.training.layout import Layout
from gemma_ft.training.steps import Standing, is_constant, planned_steps, read_standing

logger = logging.getLogger("gemma_ft")

_OURS = (".lock", ".status.json.partial")
"""What a start leaves that is killed before it has a status."""

Changes = dict[str, tuple[Any, Any]]
"""Keys with the value that a run was begun with and the one that is asked for now."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a run starts."""

    stage: Stage
    """data, trained (only the export is left) or finished."""
    extends: bool = False
    """Whether it trains more steps than its newest checkpoint was made for."""


def begin_run(
    run: RunFolder, config: RunConfig, layout: Layout, *, overwrite: bool, extend: bool
) -> Beginning:
    """Decide where a run starts; every process of a run decides alike, from what is on disk.

    Raises:
        RunError: The folder holds another run, or something else, or nothing that could be extended.
    """
    if overwrite and extend:
        raise RunError("--extend goes on with a run, --overwrite starts it anew. Leave one of them out.")
    if overwrite and run.path.exists():
        return Beginning(Stage.data)  # the folder is moved once the new run is known to work
    status = run.read_status()
    if status is None:
        _check_new(run, layout, extend=extend)
        return Beginning(Stage.data)
    if not run.steps() and not run.trained.is_dir():
        return Beginning(Stage.data)
    if _extends(run, config, status, extend=extend):
        return Beginning(Stage.data, extends=True)
    if status.stage in (Stage.trained, Stage.exporting) and run.trained.is_dir():
        return Beginning(Stage.trained)
    return Beginning(status.stage if status.stage is Stage.finished else Stage.data)


def claim_folder(
    run: RunFolder, config: RunConfig, layout: Layout, beginning: Beginning, *, overwrite: bool, extend: bool
) -> None:
    """Make the folder, take it for this process alone, and see that what was decided still holds.

    Raises:
        RunError: Another process works there, or has done so since; or the folder cannot be made.
    """
    if overwrite and run.path.exists():
        run.lock()
        old = run.set_aside()  # locked, so that nobody else moves it
        run.unlock()
        logger.info("%s is now %s", run.path, old)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"output_dir={run.path} cannot be made ({error.strerror}). Name another folder."
        ) from error
    run.lock()
    try:
        if begin_run(run, config, layout, overwrite=False, extend=extend) != beginning:
            raise RunError(
                f"{run.path} was changed by another process as this one started. Give the same line again."
            )
    except BaseException:
        run.unlock()
        raise
    if beginning.extends:
        _tell_extension(run, config)


def _check_new(run: RunFolder, layout: Layout, *, extend: bool) -> None:
    if extend:
        raise RunError(f"--extend finds no run in output_dir={run.path}. Leave it out to begin one.")
    if layout.writes and run.path.is_dir() and any(path.name not in _OURS for path in run.path.iterdir()):
        raise RunError(f"output_dir={run.path} holds files of no run. Give another name=..., or --overwrite.")


def _extends(run: RunFolder, config: RunConfig, status: Status, *, extend: bool) -> bool:
    """Check that a configuration goes on with the run of a folder; tell whether it asks for more steps."""
    changed = _changed(run, config)
    if any(key not in STEPS for key in changed):
        raise RunError(_describe_changes(run, config, changed))
    standing, finished = read_standing(run), status.stage is Stage.finished
    if standing is None:
        if changed or (extend and finished):
            raise RunError(
                f"output_dir={run.path} has no checkpoint to train on from, so it cannot be extended"
                f"{_in_brackets(changed)}. Train the longer run beside it with name={config.name}-2."
            )
        return False
    planned = planned_steps(config.trainer, standing)
    if not changed:  # as it was begun, or extended and cut before a checkpoint told so
        more = planned > standing.total and status.stage in (Stage.data, Stage.training)
    else:
        more = planned > standing.total
        _check_steps(run, config, changed, standing, planned, extend=extend)
    if extend and finished and not more:
        raise RunError(
            f"--extend needs more steps than the {standing.total} of the finished run in "
            f"output_dir={run.path}. Raise trainer.max_steps, or leave --extend out."
        )
    if more and status.stage not in (Stage.data, Stage.training):
        _check_whole(run, config)
    return more


def _check_steps(
    run: RunFolder, config: RunConfig, changed: Changes, standing: Standing, planned: int, *, extend: bool
) -> None:
    """Check that a run may take the steps that it is now asked for."""
    if planned < standing.total:
        raise RunError(
            f"{_listed(changed)}: {planned} steps are fewer than the {standing.total} that the run in "
            f"output_dir={run.path} was begun with. {_keep_both(config)}"
        )
    if planned > standing.total and not extend and not is_constant(config.trainer):
        raise RunError(
            f"{_listed(changed)}: {planned} steps are more than the {standing.total} that the "
            f"{config.trainer.lr_scheduler_type} schedule of the run in output_dir={run.path} was made for. "
            f"Add --extend to stretch it over all of them, or keep both with name={config.name}-2."
        )


def _changed(run: RunFolder, config: RunConfig) -> Changes:
    """Return what differs from the settings that a run began with, of which it may have fewer words."""
    old = load_config(run.config)
    changed = differing_keys(old, config)
    if config.model.revision is not None and run.pin(old.model).revision == config.model.revision:
        changed.pop("model.revision", None)  # it was a branch or nothing, and stood for this commit
    return changed


def _check_whole(run: RunFolder, config: RunConfig) -> None:
    """Check that a trained run has a checkpoint to train on from, before it would be trained anew."""
    from gemma_ft.training.checkpoints import torn_because

    if all(torn_because(run.step_folder(step)) is not None for step in reversed(run.steps())):
        raise RunError(
            f"output_dir={run.path} has no whole checkpoint to train on from, so it cannot be extended. "
            f"Train the longer run beside it with name={config.name}-2."
        )


def _describe_changes(run: RunFolder, config: RunConfig, changed: Changes) -> str:
    moved = (
        " Where only the folder of the base has moved, put a link there." if "model.path" in changed else ""
    )
    return (
        f"output_dir={run.path} holds a run with other settings: {_listed(changed)}. "
        f"{_keep_both(config)}{moved}"
    )


def _listed(changed: Changes) -> str:
    return ", ".join(f"{key}={_shown(new)} (there: {_shown(old)})" for key, (old, new) in changed.items())


def _in_brackets(changed: Changes) -> str:
    return f" ({_listed(changed)})" if changed else ""


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _keep_both(config: RunConfig) -> str:
    return f"Keep both with name={config.name}-2, or start anew with --overwrite."


def _tell_extension(run: RunFolder, config: RunConfig) -> None:
    standing = read_standing(run)
    if standing is None:
        return
    trainer = config.trainer
    effect = "its rates do not depend on their number"
    if not is_constant(trainer):
        effect = (
            f"it is stretched over all of them, so the learning rate jumps at step {standing.step + 1}, and "
            "the result is not that of a run that was begun with so many"
        )
    logger.info(
        "extending the run from %d to %d steps; schedule %s: %s",
        standing.total,
        planned_steps(trainer, standing),
        trainer.lr_scheduler_type,
        effect,
    )
