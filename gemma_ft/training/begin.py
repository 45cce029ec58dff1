"""What a run folder allows: begin, go on, export what is trained, or nothing more to do."""

import logging

from gemma_ft.config.compose import load_config
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import RunError
from gemma_ft.runs import RunFolder, Stage
from gemma_ft.training.identity import identity
from gemma_ft.training.layout import Layout

logger = logging.getLogger("gemma_ft")


def begin_run(run: RunFolder, config: RunConfig, layout: Layout, *, overwrite: bool) -> Stage:
    """Decide where a run starts: at data, at trained (only the export is left) or finished.

    Every process of a run decides alike, from what is on disk.

    Raises:
        RunError: The folder holds another run, or something else.
    """
    if overwrite and run.path.exists():
        if layout.world_size > 1:
            raise RunError(
                f"--overwrite cannot move {run.path} under a launcher. Rename the folder yourself."
            )
        return Stage.data  # the folder is moved once the new run is known to work
    status = run.read_status()
    if status is None:
        if layout.writes and run.path.is_dir() and any(run.path.iterdir()):
            raise RunError(
                f"output_dir={run.path} holds files of no run. Give another name=..., or --overwrite."
            )
        return Stage.data
    if not _has_trained(run):
        return Stage.data
    _check_identity(run, config)
    if status.stage in (Stage.trained, Stage.exporting) and run.trained.is_dir():
        return Stage.trained
    return status.stage if status.stage is Stage.finished else Stage.data


def _has_trained(run: RunFolder) -> bool:
    return bool(run.steps()) or run.trained.is_dir()


def _check_identity(run: RunFolder, config: RunConfig) -> None:
    old, new = identity(load_config(run.config)), identity(config)
    changed = [
        f"{key}={_shown(new.get(key))} (there: {_shown(old.get(key))})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise RunError(
            f"output_dir={run.path} holds a run with other settings: {', '.join(changed)}. "
            f"Keep both with name={config.name}-2, or start anew with --overwrite."
        )


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
