"""What a sharded run (`parallel=fsdp`) cannot be combined with, and what to use instead."""

from gemma_ft.config.schema import AdapterMethod, ParallelMethod, QuantizationMethod, RunConfig


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
    recomputing = config.trainer.extra.get("activation_checkpointing_kwargs")
    if recomputing and config.adapter.method is AdapterMethod.none:
        problems.append(
            "trainer.extra.activation_checkpointing_kwargs is nothing that parallel=fsdp reads in a full "
            "fine-tune, where FSDP recomputes activations itself. Take it out."
        )
    return problems
