"""The loss head of a run, settled at its first start and kept in the run folder."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from gemma_ft.config.schema import RunConfig
from gemma_ft.config.trainer import LossHeadMethod
from gemma_ft.modeling.checkpoint import Checkpoint
from gemma_ft.modeling.precision import Precision
from gemma_ft.runs import RunFolder
from gemma_ft.training.agreement import told_by_writer
from gemma_ft.training.layout import Layout
from gemma_ft.training.loss.choice import Choice, Load, choose_head
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.loss.measuring import Bench
from gemma_ft.training.measured import keep, recall

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("gemma_ft")

_METHODS = tuple(LossHeadMethod)


def settle_head(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: Checkpoint,
    precision: Precision,
    model: "PreTrainedModel",
    device: torch.device,
) -> LossHead:
    """Take the head that the run began with, or choose one and record why; every process takes the same.

    A resume takes the recorded one, so that it adds up the same numbers in the same order. Where the device,
    torch or what is asked for is another, it is chosen anew.

    Raises:
        ConfigError: What was asked for cannot compute this model's loss.
    """
    weight_VH = model.get_output_embeddings().weight
    soft_cap = checkpoint.config.get("final_logit_softcapping")
    load = Load(
        words=weight_VH.shape[0],
        tokens=config.trainer.micro_batch_size * config.trainer.max_length,
        dtype=precision.torch_dtype,
        device=device,
        soft_cap=soft_cap,
    )

    def lay_out() -> Bench:
        weight = _stand_in(weight_VH, load) if layout.sharded else weight_VH
        return Bench(weight, trains=weight_VH.requires_grad, dtype=load.dtype, soft_cap=soft_cap)

    head = None
    if layout.writes:
        circumstances = {
            "loss_head": config.trainer.loss_head.value,
            "loss_chunk_size": config.trainer.loss_chunk_size,
            "device": precision.device.name,
            "torch": torch.__version__,
            "words": load.words,
            "hidden_size": weight_VH.shape[1],
            "most_tokens": load.tokens,
            "dtype": precision.dtype.value,
            "trains": weight_VH.requires_grad,
        }
        head = _recorded(run, circumstances) or _choose(run, circumstances, config, load, lay_out)
    method = told_by_writer(None if head is None else _METHODS.index(head.method))
    size = told_by_writer(None if head is None else head.chunk_size)
    return LossHead(_METHODS[method or 0], size or 0)


def _recorded(run: RunFolder, circumstances: dict[str, Any]) -> LossHead | None:
    kept = recall(run.loss_head, circumstances)
    return None if kept is None else LossHead(LossHeadMethod(kept["head"]), kept["chunk_size"])


def _choose(
    run: RunFolder,
    circumstances: dict[str, Any],
    config: RunConfig,
    load: Load,
    lay_out: Callable[[], Bench],
) -> LossHead:
    choice = choose_head(config.trainer, load, lay_out)
    _record(run, choice, circumstances)
    if choice.measured:
        logger.info("loss head %s: %s", choice.head.method, choice.reason)
    return choice.head


def _record(run: RunFolder, choice: Choice, circumstances: dict[str, Any]) -> None:
    record = {
        "head": choice.head.method.value,
        "chunk_size": choice.head.chunk_size,
        "reason": choice.reason,
        "measured": list(choice.measured),
    }
    keep(run.loss_head, record, circumstances)


def _stand_in(weight_VH: torch.Tensor, load: Load) -> torch.Tensor:
    """Make a head of the same size on the device: the model's own lies in pieces, or not there yet."""
    source = torch.Generator(load.device).manual_seed(0)
    return torch.empty(weight_VH.shape, dtype=load.dtype, device=load.device).normal_(
        std=0.02, generator=source
    )
