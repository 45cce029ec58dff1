"""The door of the export: from a run folder to a checkpoint that loads anywhere."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.config.compose import load_config
from gemma_ft.config.export import FORMATS, ExportBase, ExportConfig, ExportMethod
from gemma_ft.config.schema import QuantizationMethod, RunConfig
from gemma_ft.config.secret_values import find_secret_problems
from gemma_ft.errors import ConfigError, RunError
from gemma_ft.families import Family
from gemma_ft.runs import RunFolder, Stage, State, Status, open_run

if TYPE_CHECKING:
    from gemma_ft.modeling.checkpoint import Checkpoint

logger = logging.getLogger("gemma_ft")

_ALLOWED = ("export=", "export.", "model.path=")
_CHOICES = ("export=", "export.method=")


def export(run: RunFolder | str | os.PathLike[str], *overrides: str) -> Path:
    """Export a trained run.

    Args:
        run: The run folder, wherever it is now.
        overrides: `export.*` keys, and `model.path` where the base has moved.

    Returns:
        The folder of the merged checkpoint, or of the adapter.

    Raises:
        GemmaFTError: There is nothing trained in the folder, or it cannot be exported.
    """
    folder = run if isinstance(run, RunFolder) else open_run(run)
    _check_overrides(overrides)
    chosen = any(word.startswith(_CHOICES) for word in overrides)
    if not chosen and load_config(folder.config).export.method is ExportMethod.none:
        overrides = ("export=merged", *overrides)
    config = load_config(folder.config, *overrides)
    if problems := find_secret_problems(config):
        raise ConfigError(*problems)
    folder.lock()
    try:
        status = folder.read_status()  # before hours of work: it may not be readable
        _check_trained(folder, status)
        made = export_run(folder, config)
        if status is not None and status.stage in (Stage.trained, Stage.exporting):
            folder.write_status(State.finished, Stage.finished)
    finally:
        folder.unlock()
    return made


def _check_trained(run: RunFolder, status: Status | None) -> None:
    """Refuse a run that trains, or was cut while it did: what an extended one has from before is outdated."""
    if status is not None and status.stage in (Stage.data, Stage.training):
        raise RunError(
            f"{run.path} has not been trained to its end yet: status.json says {status.state} at stage "
            f"{status.stage}. Train it first: the same line goes on."
        )


def _check_overrides(overrides: Sequence[str]) -> None:
    problems = [
        f"{word} cannot change a run that is trained. Only export.* and model.path can be given here."
        for word in overrides
        if not word.startswith(_ALLOWED)
    ]
    nothing = [f"{choice}{ExportMethod.none}" for choice in _CHOICES]
    problems += [f"{word} exports nothing. Leave it out." for word in overrides if word in nothing]
    if problems:
        raise ConfigError(*problems)


def check_export(export: ExportConfig, family: Family) -> None:
    """Refuse before hours of work what the export could not do at their end.

    Raises:
        GemmaFTError: A package is missing, or the repository cannot be written to.
    """
    if export.formats:
        from gemma_ft.exporting.formats.write import check_formats

        check_formats(export.formats, family)
    if export.push_to_hub is not None:
        from gemma_ft.exporting.publish import check_push

        check_push(export.push_to_hub, private=export.private)


def export_run(run: RunFolder, config: RunConfig) -> Path:
    """Export what a run has trained, as `config.export` says.

    Raises:
        GemmaFTError: There is nothing trained in the folder, or it cannot be exported.
    """
    from gemma_ft.modeling.checkpoint import find_checkpoint

    if not run.trained.is_dir():
        raise RunError(
            f"{run.path} has no trained weights yet. Train to the end first: the same line goes on."
        )
    checkpoint = find_checkpoint(run.pin(config.model))
    check_export(config.export, checkpoint.family)
    if config.export.method is ExportMethod.adapter:
        made = _export_adapter(run, config, checkpoint)
    else:
        made = _export_merged(run, config, checkpoint)
    if config.export.push_to_hub is not None:
        from gemma_ft.exporting.publish import push_to_hub

        address = push_to_hub(made, config.export.push_to_hub, private=config.export.private)
        logger.info("uploaded %s to %s", made, address)
    return made


def _export_adapter(run: RunFolder, config: RunConfig, checkpoint: "Checkpoint") -> Path:
    from gemma_ft.exporting.folder.adapter_folder import export_adapter
    from gemma_ft.exporting.origin import describe_origin
    from gemma_ft.exporting.record import check_adapter

    if not run.adapter.is_dir():
        raise RunError(f"{run.path} has no adapter: every weight was trained. Use export=merged.")
    check_adapter(run, config, checkpoint)
    export_adapter(
        run.adapter,
        base=checkpoint.folder,
        family=checkpoint.family,
        origin=describe_origin(run, config, checkpoint),
    )
    logger.info("exported %s: the adapter, ready to publish", run.adapter)
    return run.adapter


def _export_merged(run: RunFolder, config: RunConfig, checkpoint: "Checkpoint") -> Path:
    from gemma_ft.exporting.merged import export_merged

    quantised_twice = config.quantization.method is QuantizationMethod.nf4 and "nf4" in config.export.formats
    if quantised_twice and config.export.base is ExportBase.trained:
        logger.warning(
            "export.formats=[nf4] quantises again what export.base=trained dequantises. "
            "Add export.base=original: the result stays closer to what was trained."
        )
    export_merged(run, config, checkpoint)
    _tell_outdated(run, config.export)
    for name in config.export.formats:
        from gemma_ft.exporting.formats.write import write_format

        made = write_format(name, run.merged, run.path / name, family=checkpoint.family)
        logger.info("exported %s", made)
    return run.merged


def _tell_outdated(run: RunFolder, export: ExportConfig) -> None:
    """Say which further formats are still those of an earlier merge."""
    for name in FORMATS:
        if name not in export.formats and (run.path / name).is_dir():
            logger.warning(
                "%s is of an earlier export. Make it anew with export.formats=[%s], or remove it.",
                run.path / name,
                name,
            )
