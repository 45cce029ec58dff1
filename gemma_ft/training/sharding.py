"""FSDP2: the settings of a sharded run, in one place, and the proof that it is sharded."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import AdapterMethod, Dtype, QuantizationMethod, RunConfig
from gemma_ft.config.sharding import list_unshardable
from gemma_ft.errors import ConfigError, TrainingError
from gemma_ft.families import Family
from gemma_ft.modeling.checkpoint import Checkpoint
from gemma_ft.modeling.precision import Precision
from gemma_ft.training.layout import Layout

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


_WITH_CPU = {"cuda": "cuda:nccl,cpu:gloo", "xpu": "xpu:xccl,cpu:gloo"}
"""Backends where gradients lie in the machine's memory: their norm is summed there."""


def checkpoints_blocks(config: RunConfig) -> bool:
    """Tell whether FSDP recomputes activations itself.

    It does in full fine-tunes. With adapters its wrapper renames their modules, and every save would lose
    them; there transformers recomputes.
    """
    return config.trainer.may_recompute and config.adapter.method is AdapterMethod.none


def build_sharding(config: RunConfig, layout: Layout, precision: Precision, family: Family) -> dict[str, Any]:
    """Build the arguments of transformers that shard a model; none where it is not sharded."""
    if not layout.sharded:
        return {}
    from accelerate import ParallelismConfig

    arguments: dict[str, Any] = {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": [family.decoder_layer],
            "activation_checkpointing": checkpoints_blocks(config),
            "cpu_ram_efficient_loading": True,
            "cpu_offload": config.parallel.cpu_offload,
            "state_dict_type": "SHARDED_STATE_DICT",
        },
    }
    if config.parallel.cpu_offload and precision.device.kind in _WITH_CPU:
        arguments["ddp_backend"] = _WITH_CPU[precision.device.kind]
    if (size := config.parallel.dp_shard_size) is not None and size < layout.world_size:
        arguments["parallelism_config"] = ParallelismConfig(
            dp_replicate_size=layout.world_size // size, dp_shard_size=size
        )
    return arguments


def keep_sums_exact(accelerator: "Accelerator", precision: Precision) -> None:
    """Have losses and gradients summed in fp32.

    accelerate 1.15 takes one number format for weights, gradients and outputs: in bf16 the logged loss had
    three digits.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if precision.dtype is Dtype.fp32:
        return
    import torch

    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=precision.torch_dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
    )


def check_cuts(config: RunConfig, layout: Layout, checkpoint: Checkpoint, precision: Precision) -> None:
    """Refuse what cannot be cut into shards, before anything is loaded.

    Raises:
        ConfigError: torch is too old; or the launcher asked for shards where the configuration cannot have
            them; or a layer's 4-bit weights do not fill whole numbers of the format that holds them.
    """
    if not layout.sharded:
        return
    _check_torch()
    if problems := list_unshardable(config):
        raise ConfigError(*problems)
    if config.quantization.method is QuantizationMethod.nf4:
        step = 2 * precision.torch_dtype.itemsize
        for rows, columns in _linear_shapes(checkpoint.config):
            if rows * columns % step:
                raise ConfigError(
                    f"quantization=nf4 cannot be cut for parallel=fsdp: model.path={checkpoint.path} has "
                    f"layers of {rows} x {columns} weights, no multiple of {step}. Use parallel=ddp."
                )


def _check_torch() -> None:
    """Check that torch writes each process's shards as safetensors, which its older releases do not."""
    from importlib.metadata import version

    try:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

        writes_shards = "save_distributed" in inspect.signature(HuggingFaceStorageWriter).parameters
    except ImportError:
        writes_shards = False
    if not writes_shards:
        raise ConfigError(
            f"parallel=fsdp cannot write the checkpoints of its shards with torch {version('torch')}. "
            "Run: pip install --upgrade torch. Or use parallel=ddp."
        )


def _linear_shapes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the sizes of a block's linear layers (outputs, inputs), each once."""
    hidden, head = config["hidden_size"], config["head_dim"]
    inner, queries, keys = (
        config["intermediate_size"],
        config["num_attention_heads"] * head,
        config["num_key_value_heads"] * head,
    )
    return [(inner, hidden), (queries, hidden), (keys, hidden)]


def whole(value: Any) -> Any:
    """Return a tensor that lies in shards on the processes as one; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def check_sharded(model: "torch.nn.Module") -> None:
    """Check that every weight lies in shards on the processes.

    Raises:
        TrainingError: One is whole, so that FSDP would save nothing of its memory.
    """
    from torch.distributed.tensor import DTensor

    whole = [name for name, value in model.named_parameters() if not isinstance(value, DTensor)]
    if whole:
        raise TrainingError(
            f"parallel=fsdp left {len(whole)} of the model's weights whole, {whole[0]} among them. "
            "Please report this with the run's config.yaml and environment.json."
        )
