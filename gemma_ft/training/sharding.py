"""FSDP2: the settings of a sharded run, in one place, and the proof that it is sharded."""

from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import AdapterMethod, Dtype, RunConfig
from gemma_ft.errors import TrainingError
from gemma_ft.families import Family
from gemma_ft.modeling.precision import Precision
from gemma_ft.training.layout import Layout

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def checkpoints_blocks(config: RunConfig) -> bool:
    """Tell whether FSDP recomputes activations itself.

    It does in full fine-tunes. With adapters its wrapper renames their modules, and every save would lose
    them; there transformers recomputes.
    """
    return config.trainer.gradient_checkpointing and config.adapter.method is AdapterMethod.none


def build_sharding(config: RunConfig, layout: Layout, family: Family) -> dict[str, Any]:
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


def whole(value: Any) -> Any:
    """Return a tensor that lies in shards on the processes as one; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def check_sharded(model: "torch.nn.Module", layout: Layout) -> None:
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
