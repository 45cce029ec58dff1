"""What a sharded run (`parallel=fsdp`) cannot be combined with, and what to use instead."""

import json
import re
from pathlib import Path

from gemma_ft.config.schema import AdapterMethod, ParallelMethod, QuantizationMethod, RunConfig

_WHOLE_ONLY = re.compile(
    r"(paged_)?(adamw|lion|ademamix|rmsprop)(_bnb)?_8bit"
    r"|(paged_)?(lion|ademamix)(_32bit)?|rmsprop_bnb.*|ada(factor|grad)"
)
"""Optimizers that were tried: bitsandbytes' own kernels, and those that keep more than a weight's own shape.

Its 32-bit AdamW in pages becomes torch's, which takes the same steps."""


def find_sharding_problems(config: RunConfig) -> list[str]:
    """List what a configuration that asks for shards cannot have with them."""
    return list_unshardable(config) if config.parallel.method is ParallelMethod.fsdp else []


def list_unshardable(config: RunConfig) -> list[str]:
    """List what FSDP2 cannot shard or does not read, whoever asks for it."""
    problems = []
    if config.quantization.method is QuantizationMethod.int8:
        problems.append(
            "quantization=int8 cannot be sharded: FSDP cannot cut weights as bitsandbytes keeps these. "
            "Use quantization=nf4, which is smaller, or parallel=ddp."
        )
    if whole := _modules_trained_whole(config.adapter.path):
        problems.append(
            f"adapter.path={config.adapter.path} trains {', '.join(whole)} whole beside its matrices, which "
            "FSDP loses where the embedding is tied. Use parallel=ddp."
        )
    if _WHOLE_ONLY.fullmatch(config.trainer.optim):
        problems.append(
            f"trainer.optim={config.trainer.optim} cannot step on the shards of parallel=fsdp. "
            "Use trainer.optim=adamw_torch, whose state is sharded with the weights."
        )
    recomputing = config.trainer.extra.get("activation_checkpointing_kwargs")
    if recomputing and config.adapter.method is AdapterMethod.none:
        problems.append(
            "trainer.extra.activation_checkpointing_kwargs is nothing that parallel=fsdp reads in a full "
            "fine-tune, where FSDP recomputes activations itself. Take it out."
        )
    return problems


def _modules_trained_whole(adapter: str | None) -> list[str]:
    """Name what an existing adapter trains beside its matrices; what cannot be read is refused elsewhere."""
    if adapter is None:
        return []
    try:
        settings = json.loads(
            (Path(adapter).expanduser() / "adapter_config.json").read_text(encoding="utf-8")
        )
        return [*(settings.get("modules_to_save") or ()), *(settings.get("trainable_token_indices") or ())]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
