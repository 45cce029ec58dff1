"""The door of the export: from a run folder to a checkpoint that loads anywhere."""

import logging
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.config.compose import load_config
from gemma_ft.config.export import ExportMethod
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import ConfigError, RunError
from gemma_ft.exporting.folder.card import Origin
from gemma_ft.exporting.folder.checkpoint import export_checkpoint
from gemma_ft.runs import RunFolder, Stage, State, open_run, read_json

if TYPE_CHECKING:
    from gemma_ft.modeling.checkpoint import Checkpoint

logger = logging.getLogger("gemma_ft")

_ALLOWED = ("export=", "export.", "model.path=")


def export(run: RunFolder | str | os.PathLike[str], *overrides: str) -> Path:
    """Export a trained run.

    Args:
        run: The run folder, wherever it is now.
        overrides: `export.*` keys, and `model.path` where the base has moved.

    Returns:
        The folder of the merged checkpoint.

    Raises:
        GemmaFTError: There is nothing trained in the folder, or it cannot be exported.
    """
    folder = run if isinstance(run, RunFolder) else open_run(run)
    _check_overrides(overrides)
    config = load_config(folder.config, *overrides)
    if config.export.method is ExportMethod.none:
        config.export.method = ExportMethod.merged
    folder.lock()
    try:
        merged = export_run(folder, config)
    finally:
        folder.unlock()
    status = folder.read_status()
    if status is not None and status.stage in (Stage.trained, Stage.exporting):
        folder.write_status(State.finished, Stage.finished)
    return merged


def _check_overrides(overrides: Sequence[str]) -> None:
    problems = [
        f"{word} cannot change a run that is trained. Only export.* and model.path can be given here."
        for word in overrides
        if not word.startswith(_ALLOWED)
    ]
    if "export=none" in overrides:
        problems.append("export=none exports nothing. Leave it out.")
    if problems:
        raise ConfigError(*problems)


def export_run(run: RunFolder, config: RunConfig) -> Path:
    """Merge what a run has trained into its base, as `config.export` says.

    Raises:
        GemmaFTError: There is nothing trained in the folder, or it cannot be exported.
    """
    from gemma_ft.exporting.folder.contract import check_contract
    from gemma_ft.modeling.checkpoint import fetch_weights, find_checkpoint

    if not run.trained.is_dir():
        raise RunError(
            f"{run.path} has no trained weights yet. Train to the end first: the same line goes on."
        )
    checkpoint = find_checkpoint(run.pin(config.model))
    report = export_checkpoint(
        base=fetch_weights(checkpoint),
        trained=run.trained,
        destination=run.merged,
        family=checkpoint.family,
        origin=_origin(run, config, checkpoint.hub_id, checkpoint.revision),
        shard_bytes=config.export.shard_bytes(),
        check=lambda folder: check_contract(
            folder, run.merged, checkpoint.family, _trained_sample_sha256(run, checkpoint)
        ),
    )
    logger.info(
        "exported %s: %d tensors, %d of them changed, in %d file(s)",
        run.merged,
        report.tensors,
        report.changed,
        report.shards,
    )
    return run.merged


def _trained_sample_sha256(run: RunFolder, checkpoint: "Checkpoint") -> str:
    """Return what `sample_sha256` gave when the run began, or without such a record, what it gives now."""
    from gemma_ft.data.tokens.contract import sample_sha256
    from gemma_ft.modeling.checkpoint import load_tokenizer

    facts = read_json(run.data) if run.data.is_file() else {}
    recorded = (facts.get("contract") or {}).get("sample_sha256")
    return str(recorded or sample_sha256(load_tokenizer(checkpoint)))


def _origin(run: RunFolder, config: RunConfig, base: str | None, revision: str | None) -> Origin:
    losses = run.held_out_losses()
    return Origin(
        base_name=base,
        base_revision=revision,
        data=read_json(run.data) if run.data.is_file() else {},
        name=config.name,
        quantization=config.quantization.method.value,
        adapter=config.adapter.method.value,
        held_out_loss=(losses[0], losses[-1]) if losses else None,
        day=date.today().isoformat(),
    )
