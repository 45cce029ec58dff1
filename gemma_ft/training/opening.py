"""What a run folder says from the start: the configuration, the machine, the status."""

import logging
import shlex
from typing import TYPE_CHECKING

from gemma_ft.config.compose import config_yaml
from gemma_ft.config.schema import Attention, RunConfig
from gemma_ft.runs import RunFolder, Stage, State, write_json, write_text
from gemma_ft.training.layout import Layout

if TYPE_CHECKING:
    from gemma_ft.modeling.precision import Precision

logger = logging.getLogger("gemma_ft")


def open_folder(config: RunConfig, run: RunFolder, layout: Layout, precision: "Precision") -> None:
    """Write down what a run is, and say it; the folder is this process's alone."""
    from gemma_ft.training.environment import describe_environment

    run.write_status(State.running, Stage.data)
    run.checkpoints.mkdir(exist_ok=True)
    write_text(
        run.config,
        f"# Run again: python -m gemma_ft {shlex.quote(f'recipe={run.config}')}\n{config_yaml(config)}",
    )
    write_json(run.environment, describe_environment(precision, layout))
    logger.info("run %s in %s", config.name, run.path)
    logger.info(
        "device %s, dtype %s, attention %s", precision.device.name, precision.dtype, precision.attention
    )
    for warning in precision.warnings:
        logger.warning("%s", warning)
    _say_batches(config, layout, precision)


def _say_batches(config: RunConfig, layout: Layout, precision: "Precision") -> None:
    trainer = config.trainer
    logger.info(
        "batch %d = micro-batch %d x accumulation %d x %d process(es)",
        trainer.global_batch_size,
        trainer.micro_batch_size,
        layout.accumulation,
        layout.world_size,
    )
    flash = precision.attention is Attention.flash_attention_2
    if trainer.packing and trainer.micro_batch_size > 1 and not flash:
        logger.warning(
            "trainer.micro_batch_size=%d joins packed sequences into one, whose cost grows with its square "
            "without FlashAttention. trainer.micro_batch_size=1 takes the same steps for less.",
            trainer.micro_batch_size,
        )
