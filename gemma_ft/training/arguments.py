"""From our configuration to TRL's arguments."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import Dtype, QuantizationMethod, RunConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.errors import ConfigError, first_line
from gemma_ft.families import Family
from gemma_ft.modeling.precision import Precision
from gemma_ft.training.layout import Layout
from gemma_ft.training.optimization import check_optimization
from gemma_ft.training.sharding import build_sharding, checkpoints_blocks

if TYPE_CHECKING:
    from trl import SFTConfig

_ALWAYS = {
    "packing_strategy": "bfd",  # the one that keeps documents whole and apart
    "dataset_kwargs": {"skip_prepare_dataset": True},  # rows come masked, cut and packed
    "save_strategy": "steps",
    "restore_callback_states_from_checkpoint": True,  # patience goes on counting where it was
    "logging_first_step": True,
    "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
    "disable_tqdm": True,
    "push_to_hub": False,
    "ddp_find_unused_parameters": False,
}

_WITHOUT_PAGES = {
    "paged_adamw": "adamw_torch",
    "paged_adamw_32bit": "adamw_torch",
    "paged_adamw_8bit": "adamw_8bit",
    "paged_lion": "lion_32bit",
    "paged_lion_32bit": "lion_32bit",
    "paged_lion_8bit": "lion_8bit",
    "paged_ademamix_32bit": "ademamix",
    "paged_ademamix_8bit": "ademamix_8bit",
}
"""The same optimizers where there is no GPU whose memory could be paged."""

_AS_THEY_ARE = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "neftune_noise_alpha",
    "num_train_epochs",
    "max_steps",
    "max_length",
    "packing",
    "logging_steps",
    "save_steps",
    "load_best_model_at_end",
)
"""Keys that TRL knows by the same name and meaning."""


def build_arguments(
    config: RunConfig,
    *,
    layout: Layout,
    precision: Precision,
    family: Family,
    output_dir: Path,
    evaluates: bool,
) -> "SFTConfig":
    """Build TRL's arguments.

    Args:
        config: The run.
        layout: Processes and accumulation.
        precision: Device and number format.
        family: Whose blocks are sharded, where the layout shards.
        output_dir: Where checkpoints are written before they get their final name.
        evaluates: Whether there are held-out rows.

    Raises:
        ConfigError: A value or an extra that TRL, the optimizer, the schedule or this machine does not take.
    """
    from trl import SFTConfig

    trainer = config.trainer
    try:
        arguments = SFTConfig(
            output_dir=str(output_dir),
            **_batches(trainer, layout),
            seed=config.seed,
            run_name=config.name,
            report_to="none",  # the tracker takes what metrics.jsonl takes
            **_ALWAYS,
            **_device(trainer, layout, precision),
            **_memory(config, layout, precision, family),
            **{name: getattr(trainer, name) for name in _AS_THEY_ARE},
            **_evaluation(trainer, evaluates=evaluates),
            **trainer.extra,
        )
    except (TypeError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        raise ConfigError(
            f"trainer.* cannot become TRL's arguments: {reason}. Look it up in SFTConfig."
        ) from error
    if precision.dtype is Dtype.fp32:
        arguments.mixed_precision = "no"  # a launcher's ACCELERATE_MIXED_PRECISION would stand otherwise
    _check_here(arguments, config, precision)
    check_optimization(arguments)
    return arguments


def _batches(trainer: TrainerConfig, layout: Layout) -> dict[str, int]:
    return {
        "per_device_train_batch_size": trainer.micro_batch_size,
        "per_device_eval_batch_size": 1 if trainer.packing else trainer.micro_batch_size,
        "gradient_accumulation_steps": layout.accumulation,
    }


def _device(trainer: TrainerConfig, layout: Layout, precision: Precision) -> dict[str, Any]:
    gpu = precision.device.kind == "cuda"
    pages = gpu and not layout.sharded
    return {
        "bf16": precision.dtype is Dtype.bf16,
        "fp16": precision.dtype is Dtype.fp16,
        "use_cpu": precision.device.kind == "cpu",
        "dataloader_pin_memory": gpu,
        # shards have no pages; they are what saves the memory
        "optim": trainer.optim if pages else _WITHOUT_PAGES.get(trainer.optim, trainer.optim),
    }


def _memory(config: RunConfig, layout: Layout, precision: Precision, family: Family) -> dict[str, Any]:
    """Shard the model, or not, and have its activations recomputed, by FSDP or by transformers."""
    recomputes = layout.sharded and checkpoints_blocks(config)
    return {
        "activation_checkpointing": config.trainer.may_recompute and not recomputes,
        **build_sharding(config, layout, precision, family),
    }


def _evaluation(trainer: TrainerConfig, *, evaluates: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"eval_on_start": evaluates}
    if evaluates and trainer.eval_steps is not None:
        settings |= {"eval_strategy": "steps", "eval_steps": trainer.eval_steps}
    if trainer.load_best_model_at_end or trainer.early_stopping_patience is not None:
        settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    return settings


def _check_here(arguments: "SFTConfig", config: RunConfig, precision: Precision) -> None:
    """Refuse what would only be found unusable on this machine once the model is loaded."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    if precision.device.kind == "cpu":
        if config.quantization.method is QuantizationMethod.int8 and config.adapter.dora:
            raise ConfigError(
                "adapter.dora=true cannot train on quantization=int8 on a CPU. Use quantization=nf4 or none."
            )
        for name in ("activation_offloading", "use_liger_kernel"):
            if getattr(arguments, name):
                raise ConfigError(f"trainer.extra.{name}=true needs a GPU. Take it out on a CPU.")
        if (arguments.activation_checkpointing_kwargs or {}).get("offload"):
            raise ConfigError(
                "trainer.extra.activation_checkpointing_kwargs.offload=true needs a GPU. Take it out."
            )
    if arguments.use_liger_kernel and find_spec("liger_kernel") is None:
        raise ConfigError(
            "trainer.extra.use_liger_kernel=true needs a package. Install it: pip install liger-kernel"
        )
    _check_compilation(arguments)
    try:
        DataLoader(
            TensorDataset(torch.zeros(1)),
            num_workers=arguments.dataloader_num_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            persistent_workers=arguments.dataloader_persistent_workers,
            multiprocessing_context=arguments.dataloader_multiprocessing_context,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"trainer.extra.dataloader_* cannot work together: {error}") from error


def _check_compilation(arguments: "SFTConfig") -> None:
    """Refuse names that torch.compile would only meet at the first step."""
    if not arguments.torch_compile:
        return
    import torch._dynamo
    import torch._inductor
    from accelerate.utils import DynamoBackend

    backends = [
        name
        for name in torch._dynamo.list_backends(exclude_tags=())
        if name.upper() in DynamoBackend.__members__
    ]
    backend, mode = arguments.torch_compile_backend, arguments.torch_compile_mode
    known = {
        "backend": (backend, backends),
        "mode": (mode, list(torch._inductor.list_mode_options())),
    }
    for name, (value, choices) in known.items():
        if value is not None and value not in choices:
            raise ConfigError(
                f"trainer.extra.torch_compile_{name}={value} is none that torch has here. "
                f"Use one of {', '.join(choices)}."
            )
