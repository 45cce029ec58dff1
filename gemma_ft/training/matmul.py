"""What multiplies matrices in a run on a CPU, settled at its first start and kept in the run folder."""

import logging
from collections import Counter
from typing import Any

import torch

from gemma_ft.config.schema import Dtype, RunConfig
from gemma_ft.config.trainer import CpuMatmul
from gemma_ft.errors import ConfigError
from gemma_ft.modeling.matmul import Weight, find_fault, has_onednn, time_products
from gemma_ft.modeling.precision import Precision
from gemma_ft.runs import RunFolder
from gemma_ft.training.agreement import told_by_writer
from gemma_ft.training.layout import Layout
from gemma_ft.training.measured import keep, recall

logger = logging.getLogger("gemma_ft")

_SMALL = 2**23
"""Weights of a model that are not worth it: its products take little of a step."""
_WORTH = 1.25
"""oneDNN has to be faster by this: it takes memory for each shape it meets."""


def settle_matmul(
    config: RunConfig, run: RunFolder, layout: Layout, precision: Precision, model: torch.nn.Module
) -> CpuMatmul:
    """Take what the run began with, or choose and record why; every process takes the same.

    Raises:
        ConfigError: oneDNN was asked for, and cannot compute this run.
    """
    asked = config.trainer.cpu_matmul
    fp32_on_cpu = precision.device.kind == "cpu" and precision.dtype is Dtype.fp32
    if asked is CpuMatmul.onednn and not fp32_on_cpu:
        raise ConfigError(
            f"trainer.cpu_matmul=onednn is for fp32 on a CPU; this run computes in {precision.dtype} on "
            f"{precision.device.name}. Leave it out."
        )
    if asked is CpuMatmul.default or not fp32_on_cpu:
        return CpuMatmul.default
    weights = linear_weights(model)
    if asked is CpuMatmul.onednn:
        return _take(weights)
    choice = _choose(config, run, weights) if layout.writes else None
    by_onednn = told_by_writer(None if choice is None else int(choice is CpuMatmul.onednn))
    return CpuMatmul.onednn if by_onednn else CpuMatmul.default


def linear_weights(model: torch.nn.Module) -> list[Weight]:
    """List the weights that a model multiplies by, quantised ones and those in shards included."""
    found = Counter(
        (module.out_features, module.in_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    return [Weight(*size, count) for size, count in sorted(found.items())]


def _take(weights: list[Weight]) -> CpuMatmul:
    if not has_onednn():
        raise ConfigError(
            f"trainer.cpu_matmul=onednn needs a torch that has it; {torch.__version__} has not. "
            "Use trainer.cpu_matmul=auto."
        )
    if fault := find_fault(weights):
        raise ConfigError(f"trainer.cpu_matmul=onednn is wrong here: {fault}. Use trainer.cpu_matmul=auto.")
    return CpuMatmul.onednn


def _choose(config: RunConfig, run: RunFolder, weights: list[Weight]) -> CpuMatmul:
    size = sum(weight.outputs * weight.inputs * weight.count for weight in weights)
    if size < _SMALL or not has_onednn():
        return CpuMatmul.default
    rows = config.trainer.micro_batch_size * config.trainer.max_length
    circumstances = {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "most_tokens": rows,
        "weights": [[weight.outputs, weight.inputs, weight.count] for weight in weights],
    }
    fault = find_fault(weights)  # of this processor, whichever one the run began on
    kept = recall(run.cpu_matmul, circumstances)
    if kept is not None and not (fault and kept["cpu_matmul"] == CpuMatmul.onednn):
        return CpuMatmul(kept["cpu_matmul"])
    choice, record = (CpuMatmul.default, {"reason": fault}) if fault else _compare(weights, rows)
    keep(run.cpu_matmul, {"cpu_matmul": choice.value, **record}, circumstances)
    if choice is CpuMatmul.onednn:
        logger.info("matrix products by oneDNN: %s", record["reason"])
    return choice


def _compare(weights: list[Weight], rows: int) -> tuple[CpuMatmul, dict[str, Any]]:
    seconds = {
        name: time_products(weights, rows, onednn=name is CpuMatmul.onednn)
        for name in (CpuMatmul.default, CpuMatmul.onednn)
    }
    gain = seconds[CpuMatmul.default] / seconds[CpuMatmul.onednn]
    best = CpuMatmul.onednn if gain >= _WORTH else CpuMatmul.default
    return best, {
        "reason": f"it is {gain:.2f} times as fast as torch's own choice and as exact"
        if best is CpuMatmul.onednn
        else f"oneDNN is {gain:.2f} times as fast, which is not worth its memory",
        "milliseconds": {name.value: round(1000 * value, 3) for name, value in seconds.items()},
    }
