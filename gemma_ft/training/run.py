"""A run, from configuration to checkpoint."""

import logging
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft import stopping
from gemma_ft.config.checks import check_config
from gemma_ft.config.export import ExportMethod
from gemma_ft.config.schema import AdapterMethod, RunConfig
from gemma_ft.errors import ConfigError
from gemma_ft.runs import RunFolder, Stage, State
from gemma_ft.secrets import kept_out_of_logs
from gemma_ft.training.agreement import check_stop
from gemma_ft.training.begin import begin_run, claim_folder
from gemma_ft.training.connections import leave_processes
from gemma_ft.training.data import prepare_rows
from gemma_ft.training.ending import recorded
from gemma_ft.training.layout import Layout, check_devices, resolve_layout
from gemma_ft.training.opening import open_folder
from gemma_ft.training.record import record_trained

if TYPE_CHECKING:
    import torch

    from gemma_ft.modeling.checkpoint import Checkpoint
    from gemma_ft.modeling.precision import Precision
    from gemma_ft.training.trackers.tracker import Tracker
    from gemma_ft.training.trainer import RunTrainer

logger = logging.getLogger("gemma_ft")

_TIME_UP = "trainer.max_hours has passed"


def train(config: RunConfig, *, overwrite: bool = False, extend: bool = False) -> RunFolder:
    """Run a recipe: data, training, export; an unfinished run goes on where it was.

    Args:
        config: The whole run, as `gemma_ft.compose` returns it.
        overwrite: Move an existing run folder aside and start anew.
        extend: Train on for more steps than the run was begun with, under a schedule stretched over them.

    Raises:
        Interrupted: The run was asked to stop, and the same line goes on.
        GemmaFTError: It cannot work; the message says why and what to do.
    """
    check_config(config)
    layout = resolve_layout(config)
    run = RunFolder(config.output_dir)
    beginning = begin_run(run, config, layout, overwrite=overwrite, extend=extend)
    if beginning.stage is Stage.finished:
        logger.info("%s is finished. Train anew with --overwrite, or keep both with name=...", run.path)
        return run
    limit = stopping.within(_seconds(config), _TIME_UP)
    with stopping.listen(), limit, kept_out_of_logs(), recorded(run, config, layout):
        claim = partial(claim_folder, run, config, layout, beginning, overwrite=overwrite, extend=extend)
        if beginning.stage is Stage.data:
            _fit(config, run, layout, claim, overwrite=overwrite, extends=beginning.extends)
            leave_processes()
        elif layout.writes:
            claim()
        if layout.writes:
            _finish(config, run)
    return run


def _seconds(config: RunConfig) -> float | None:
    return None if config.trainer.max_hours is None else config.trainer.max_hours * 3600


def _fit(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    claim: Callable[[], None],
    *,
    overwrite: bool,
    extends: bool,
) -> None:
    """Train, and leave what was trained in the run folder, which is claimed once the run is known to work."""
    from gemma_ft.exporting.run import check_export
    from gemma_ft.modeling.checkpoint import find_checkpoint
    from gemma_ft.modeling.libraries import quiet_libraries
    from gemma_ft.modeling.precision import check_quantization, read_device, resolve_precision
    from gemma_ft.training.sharding import check_cuts
    from gemma_ft.training.tracking import tracked

    quiet_libraries()
    device = read_device()
    check_devices(layout, device.kind)
    check_quantization(config.quantization.method, config.trainer.optim, device)
    checkpoint = find_checkpoint(config.model if overwrite else run.pin(config.model))
    _check_length(config, checkpoint)
    check_export(config.export, checkpoint.family)
    precision = resolve_precision(config.model, checkpoint.family, device)
    check_cuts(config, layout, checkpoint, precision)
    if layout.writes:
        claim()
        if not extends:
            open_folder(config, run, layout, precision)
    with tracked(config, run, writes=layout.writes) as tracker:
        _learn(config, run, layout, checkpoint, precision, tracker, extends=extends)


def _learn(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: "Checkpoint",
    precision: "Precision",
    tracker: "Tracker",
    *,
    extends: bool,
) -> None:
    """Prepare the rows, train on them and save what was trained."""
    from gemma_ft.data.tokens.contract import check_tokenizer
    from gemma_ft.modeling.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    check_tokenizer(tokenizer, checkpoint.path, checkpoint.family)
    data = prepare_rows(config, run, layout, checkpoint, tokenizer)
    if layout.writes and extends:  # only now: a finished run stays one where its extension is refused
        open_folder(config, run, layout, precision)
    stopping.check()  # a library may have swallowed what was raised in it
    from gemma_ft.training.build import build_trainer  # here, since TRL takes seconds to import

    trainer = build_trainer(config, run, layout, checkpoint, precision, tokenizer, data, tracker)
    stopping.check()
    _train(trainer, config, run, layout, extends=extends)
    if data.held_out is not None and not _just_evaluated(trainer):
        trainer.evaluate()
    _sample(trainer, config, run, layout, when="after")
    check_stop()
    weights = trainer.trained_weights()
    if layout.writes:
        _save(trainer, weights, config, run, checkpoint)
        record_trained(run, config, checkpoint, precision)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        run.write_status(State.running, Stage.trained)


def _train(
    trainer: "RunTrainer", config: RunConfig, run: RunFolder, layout: Layout, *, extends: bool
) -> None:
    """Train from the start, or on from the newest checkpoint."""
    from gemma_ft.training.checkpoints import newest_whole
    from gemma_ft.training.trainer import read_state

    checkpoint = newest_whole(run, writes=layout.writes)
    if layout.writes:
        lost = run.forget_metrics_after(len(read_state(checkpoint).log_history) if checkpoint else 0)
        if lost:
            logger.warning("%s has lost %d of the lines that were logged before.", run.metrics, lost)
        run.write_status(State.running, Stage.training)
    if checkpoint:
        logger.info("going on from %s", checkpoint)
        with stopping.deferred():
            trainer.go_on(checkpoint, extends=extends)
    else:
        if layout.sharded and config.trainer.sample_prompt is not None:
            trainer.shard()
        _sample(trainer, config, run, layout, when="before")
        with stopping.deferred():
            trainer.train()
    check_stop()


def _check_length(config: RunConfig, checkpoint: "Checkpoint") -> None:
    """Check what only config.json tells of a hub repository that is not Google's own."""
    length, bound = config.trainer.max_length, checkpoint.context_length
    if length > bound:
        raise ConfigError(
            f"trainer.max_length={length} is above the {bound} positions of model.path={checkpoint.path}. "
            f"Use at most {bound}."
        )


def _just_evaluated(trainer: "RunTrainer") -> bool:
    """Tell whether the weights that the run ends with have been evaluated last."""
    state = trainer.state
    if trainer.args.load_best_model_at_end and state.best_global_step != state.global_step:
        return False
    return any("eval_loss" in log and log["step"] == state.global_step for log in state.log_history)


def _sample(trainer: "RunTrainer", config: RunConfig, run: RunFolder, layout: Layout, *, when: str) -> None:
    if config.trainer.sample_prompt is None or not (layout.writes or layout.sharded):
        return
    from gemma_ft.evaluation.generate import answer, learned_plain_text

    prompt, length = config.trainer.sample_prompt, config.trainer.sample_tokens
    raw = learned_plain_text(run)
    with trainer.computing():
        text = answer(trainer.model, trainer.processing_class, prompt, max_new_tokens=length, raw=raw)
    if not layout.writes:  # it answered with its shards
        return
    run.append_metrics({"step": trainer.state.global_step, "sample": when, "prompt": prompt, "answer": text})
    logger.info("%s training: %r -> %r", when, prompt, text)


def _save(
    trainer: "RunTrainer",
    weights: "dict[str, torch.Tensor] | None",
    config: RunConfig,
    run: RunFolder,
    checkpoint: "Checkpoint",
) -> None:
    """Write what was trained: the adapter, or the whole model, from its weights where they lay in shards."""
    from gemma_ft.modeling.adapters import save_adapter
    from gemma_ft.modeling.weights import check_weights, publish_folder

    model = trainer.accelerator.unwrap_model(trainer.model)
    final = run.model if config.adapter.method is AdapterMethod.none else run.adapter
    beside = Path(trainer.args.output_dir) / final.name
    if final is run.adapter:
        base = checkpoint.hub_id or str(checkpoint.folder)
        save_adapter(model, beside, base=base, revision=checkpoint.revision, weights=weights)
    else:
        model.save_pretrained(beside, state_dict=weights)
        trainer.processing_class.save_pretrained(beside)
    check_weights(beside)
    publish_folder(beside, final)
    logger.info("trained: %s", final)


def _finish(config: RunConfig, run: RunFolder) -> None:
    """Export as configured and close the run."""
    from gemma_ft.exporting.run import export_run

    if config.export.method is not ExportMethod.none:
        run.write_status(State.running, Stage.exporting)
        export_run(run, config)
    run.write_status(State.finished, Stage.finished)
    logger.info('finished. Ask it: python -m gemma_ft generate %s "..."', shlex.quote(str(run.path)))
