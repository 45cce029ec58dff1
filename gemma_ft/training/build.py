"""From a configuration, a checkpoint and prepared rows to a trainer that can start."""

import logging
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    set_seed,
)

from gemma_ft.config.schema import AdapterMethod, RunConfig
from gemma_ft.config.trainer import CpuMatmul
from gemma_ft.data.prepare import PreparedData
from gemma_ft.errors import ModelError
from gemma_ft.modeling.adapters import attach_adapter
from gemma_ft.modeling.checkpoint import Checkpoint
from gemma_ft.modeling.loading import load_model
from gemma_ft.modeling.matmul import by_onednn
from gemma_ft.modeling.precision import Precision
from gemma_ft.runs import RunFolder
from gemma_ft.training.activations import settle_checkpointing
from gemma_ft.training.arguments import build_arguments
from gemma_ft.training.guard import StepGuard
from gemma_ft.training.layout import Layout
from gemma_ft.training.loss.settled import settle_head
from gemma_ft.training.matmul import settle_matmul
from gemma_ft.training.progress import Progress
from gemma_ft.training.trackers.tracker import Tracker
from gemma_ft.training.trainer import RunTrainer

logger = logging.getLogger("gemma_ft")


def build_trainer(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: Checkpoint,
    precision: Precision,
    tokenizer: PreTrainedTokenizerFast,
    data: PreparedData,
    tracker: Tracker,
) -> RunTrainer:
    """Load the model, put adapters on it and hand both to TRL with the prepared rows.

    Raises:
        GemmaFTError: TRL does not take an argument, weights cannot be had, or an adapter does not fit.
    """
    evaluates = data.held_out is not None
    arguments = build_arguments(
        settle_checkpointing(config, layout, checkpoint, precision, data.rows),
        layout=layout,
        precision=precision,
        family=checkpoint.family,
        output_dir=run.checkpoints / ".writing",
        evaluates=evaluates,
    )
    set_seed(config.seed)
    adapts = config.adapter.method is not AdapterMethod.none
    dtype = precision.torch_dtype if adapts else torch.float32  # full fine-tunes keep fp32 master weights
    model = load_model(checkpoint, precision, config.quantization, dtype=dtype, sharded=layout.sharded)
    if adapts:
        model = attach_adapter(model, config.adapter)
    trained = _count_trainable(model, config)
    trainer = RunTrainer(
        layout=layout,
        precision=precision,
        run=run,
        guard=StepGuard(data),
        **_settle(config, run, layout, checkpoint, precision, model, arguments.device),
        checkpoints_kept=config.trainer.save_total_limit,
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.held_out,
        processing_class=tokenizer,
        callbacks=_build_callbacks(config, run, tracker),
    )
    trainer.remove_callback(PrinterCallback)
    _say_what_trains(trained, checkpoint, config)
    return trainer


def _settle(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: Checkpoint,
    precision: Precision,
    model: PreTrainedModel,
    device: torch.device,
) -> dict[str, Any]:
    """Settle what computes, each once a run: what multiplies matrices first, since the head does too."""
    matmul = settle_matmul(config, run, layout, precision, model)
    with by_onednn(matmul is CpuMatmul.onednn):
        head = settle_head(config, run, layout, checkpoint, precision, model, device)
    return {"matmul": matmul, "loss_head": head}


def _build_callbacks(config: RunConfig, run: RunFolder, tracker: Tracker) -> list[Any]:
    callbacks: list[Any] = [Progress(run, tracker)]
    if config.trainer.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.trainer.early_stopping_patience))
    return callbacks


def _count_trainable(model: torch.nn.Module, config: RunConfig) -> int:
    """Count what training changes.

    Raises:
        ModelError: It is nothing.
    """
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    if not trained:
        raise ModelError(
            f"adapter={config.adapter.method} leaves model.path={config.model.path} without a trainable "
            "parameter. Use adapter=lora with targets that the model has."
        )
    return trained


def _say_what_trains(trained: int, checkpoint: Checkpoint, config: RunConfig) -> None:
    logger.info(
        "model %s (%s), quantization %s, adapter %s, %s trainable parameters",
        checkpoint.path,
        checkpoint.family.name,
        config.quantization.method,
        config.adapter.method,
        f"{trained:,}",
    )
