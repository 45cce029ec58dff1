"""A run, from configuration to checkpoint."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.checks import check_config
from gemma_ft.config.compose import config_yaml
from gemma_ft.config.schema import AdapterMethod, ExportMethod, RunConfig
from gemma_ft.errors import ConfigError
from gemma_ft.runs import RunFolder, Stage, State, write_json, write_text
from gemma_ft.training.begin import begin_run, recorded
from gemma_ft.training.layout import Layout, resolve_layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.modeling.checkpoint import Checkpoint
    from gemma_ft.modeling.precision import Precision
    from gemma_ft.training.trainer import RunTrainer

logger = logging.getLogger("gemma_ft")


def train(config: RunConfig, *, overwrite: bool = False) -> RunFolder:
    """Run a recipe: data, training, export; an unfinished run goes on where it was.

    Args:
        config: The whole run, as `gemma_ft.compose` returns it.
        overwrite: Move an existing run folder aside and start anew.

    Raises:
        GemmaFTError: It cannot work; the message says why and what to do.
    """
    check_config(config)
    layout = resolve_layout(config)
    run = RunFolder(config.output_dir)
    stage = begin_run(run, config, layout, overwrite=overwrite)
    if stage is Stage.finished:
        logger.info("%s is finished. Train anew with --overwrite, or keep both with name=...", run.path)
        return run
    with recorded(run, layout):
        if stage is Stage.data:
            _fit(config, run, layout)
        if layout.writes:
            _finish(config, run)
    return run


def _fit(config: RunConfig, run: RunFolder, layout: Layout) -> None:
    """Train, and leave what was trained in the run folder."""
    from gemma_ft.data.tokens import check_tokenizer
    from gemma_ft.modeling.checkpoint import find_checkpoint, load_tokenizer
    from gemma_ft.modeling.libraries import quiet_libraries
    from gemma_ft.modeling.precision import read_device, resolve_precision

    quiet_libraries()
    checkpoint = find_checkpoint(config.model)
    _check_length(config, checkpoint)
    precision = resolve_precision(config.model, checkpoint.family, read_device())
    if layout.writes:
        _open_folder(config, run, layout, precision)
    tokenizer = load_tokenizer(checkpoint)
    check_tokenizer(tokenizer, checkpoint.path)
    data = _prepare(config, run, layout, checkpoint, tokenizer)
    trainer = _build_trainer(config, run, layout, checkpoint, precision, tokenizer, data)
    resumed = run.steps()[-1:]
    if layout.writes:
        run.forget_metrics_after(resumed[0] if resumed else -1)
        run.write_status(State.running, Stage.training)
    if resumed:
        logger.info("going on from step %d", resumed[0])
    else:
        _sample(trainer, config, run, layout, when="before")
    trainer.train(resume_from_checkpoint=str(run.step_folder(resumed[0])) if resumed else None)
    if data.held_out is not None and (config.trainer.load_best_model_at_end or not _just_evaluated(trainer)):
        trainer.evaluate()
    _sample(trainer, config, run, layout, when="after")
    if layout.writes:
        _save(trainer, config, run, checkpoint)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        run.write_status(State.running, Stage.trained)
    trainer.accelerator.end_training()


def _check_length(config: RunConfig, checkpoint: "Checkpoint") -> None:
    """Check what only config.json tells of a hub repository that is not Google's own."""
    length, bound = config.trainer.max_length, checkpoint.context_length
    if length > bound:
        raise ConfigError(
            f"trainer.max_length={length} is above the {bound} positions of model.path={checkpoint.path}. "
            f"Use at most {bound}."
        )


def _open_folder(config: RunConfig, run: RunFolder, layout: Layout, precision: "Precision") -> None:
    from gemma_ft.training.environment import describe_environment
    from gemma_ft.training.tracking import prepare_tracking

    run.path.mkdir(parents=True, exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)
    write_text(run.config, f"# Run again: python -m gemma_ft recipe={run.config}\n{config_yaml(config)}")
    write_json(run.environment, describe_environment(precision, layout))
    run.write_status(State.running, Stage.data)
    prepare_tracking(config, run)
    logger.info("run %s in %s", config.name, run.path)
    logger.info(
        "device %s, dtype %s, attention %s", precision.device.name, precision.dtype, precision.attention
    )


def _prepare(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: "Checkpoint",
    tokenizer: "PreTrainedTokenizerFast",
) -> "PreparedData":
    from gemma_ft.data.prepare import prepare_data

    data = prepare_data(
        config.dataset, tokenizer=tokenizer, max_length=config.trainer.max_length, seed=config.seed
    )
    if layout.writes:
        base = {"path": checkpoint.path, "revision": checkpoint.revision, "family": checkpoint.family.name}
        write_json(run.data, {**data.facts, "model": base})
    logger.info("data %s: %s", config.dataset.path, _summary(data.facts))
    return data


def _summary(facts: dict[str, Any]) -> str:
    return (
        f"{facts['rows_train']:,} rows to train on, {facts['rows_held_out']:,} held out, "
        f"{facts['rows_cut']:,} cut; "
        f"{facts['tokens']:,} tokens, {facts['trained_share']:.0%} of them learned"
    )


def _build_trainer(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: "Checkpoint",
    precision: "Precision",
    tokenizer: "PreTrainedTokenizerFast",
    data: "PreparedData",
) -> "RunTrainer":
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback, set_seed

    from gemma_ft.modeling.adapters import attach_adapter
    from gemma_ft.modeling.loading import load_model
    from gemma_ft.training.arguments import build_arguments
    from gemma_ft.training.progress import Progress
    from gemma_ft.training.trainer import RunTrainer

    evaluates = data.held_out is not None
    arguments = build_arguments(
        config,
        layout=layout,
        precision=precision,
        output_dir=run.checkpoints / ".writing",
        evaluates=evaluates,
        resumes=bool(run.steps()),
    )
    set_seed(config.seed)
    adapts = config.adapter.method is not AdapterMethod.none
    dtype = precision.torch_dtype if adapts else torch.float32  # full fine-tunes keep fp32 master weights
    model = load_model(checkpoint, precision, config.quantization, dtype=dtype)
    if adapts:
        model = attach_adapter(model, config.adapter)
    callbacks: list[Any] = [Progress(run)]
    if config.trainer.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.trainer.early_stopping_patience))
    trainer = RunTrainer(
        run=run,
        checkpoints_kept=config.trainer.save_total_limit,
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.held_out,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    _say_what_trains(trainer, checkpoint, config)
    return trainer


def _say_what_trains(trainer: "RunTrainer", checkpoint: "Checkpoint", config: RunConfig) -> None:
    trained = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    logger.info(
        "model %s (%s), quantization %s, adapter %s, %s trainable parameters",
        checkpoint.path,
        checkpoint.family.name,
        config.quantization.method,
        config.adapter.method,
        f"{trained:,}",
    )


def _just_evaluated(trainer: "RunTrainer") -> bool:
    return any(
        "eval_loss" in log and log["step"] == trainer.state.global_step for log in trainer.state.log_history
    )


def _sample(trainer: "RunTrainer", config: RunConfig, run: RunFolder, layout: Layout, *, when: str) -> None:
    if config.trainer.sample_prompt is None or not layout.writes:
        return
    from gemma_ft.evaluation.generate import answer, learned_plain_text

    prompt, length = config.trainer.sample_prompt, config.trainer.sample_tokens
    raw = learned_plain_text(run)
    text = answer(trainer.model, trainer.processing_class, prompt, max_new_tokens=length, raw=raw)
    run.append_metrics({"step": trainer.state.global_step, "sample": when, "prompt": prompt, "answer": text})
    logger.info("%s training: %r -> %r", when, prompt, text)


def _save(trainer: "RunTrainer", config: RunConfig, run: RunFolder, checkpoint: "Checkpoint") -> None:
    """Write what was trained: the adapter, or the whole model."""
    from gemma_ft.modeling.adapters import save_adapter
    from gemma_ft.modeling.weights import check_weights, publish_folder

    model = trainer.accelerator.unwrap_model(trainer.model)
    final = run.model if config.adapter.method is AdapterMethod.none else run.adapter
    beside = Path(trainer.args.output_dir) / final.name
    if final is run.adapter:
        save_adapter(
            model, beside, base=checkpoint.hub_id or str(checkpoint.folder), revision=checkpoint.revision
        )
    else:
        model.save_pretrained(beside)
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
    logger.info('finished. Ask it: python -m gemma_ft generate %s "..."', run.path)
