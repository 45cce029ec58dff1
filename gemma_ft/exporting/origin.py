"""What model card and NOTICE say of a run: base, data, method, losses."""

from datetime import date
from typing import TYPE_CHECKING

from gemma_ft.config.export import ExportBase
from gemma_ft.config.schema import AdapterMethod, QuantizationMethod, RunConfig
from gemma_ft.exporting.folder.card import Origin
from gemma_ft.runs import RunFolder, read_json

if TYPE_CHECKING:
    from gemma_ft.modeling.checkpoint import Checkpoint


def describe_origin(run: RunFolder, config: RunConfig, checkpoint: "Checkpoint") -> Origin:
    """Collect what is known of a run's making; the base goes by the name it had in training."""
    data = read_json(run.data) if run.data.is_file() else {}
    losses = run.held_out_losses()
    trained_on = data.get("model") or {}
    from_hub = trained_on.get("revision") is not None
    return Origin(
        base_name=trained_on["path"] if from_hub else checkpoint.path,
        base_revision=trained_on["revision"] if from_hub else checkpoint.revision,
        data=data,
        name=config.name,
        settings=_settings(config),
        quantization=config.quantization.method.value,
        adapter=config.adapter.method.value,
        merged_onto=_merged_onto(config),
        held_out_loss=(losses[0], losses[-1]) if losses else None,
        day=date.today().isoformat(),
    )


def _settings(config: RunConfig) -> dict[str, str]:
    """Name the choices that a reader asks for first, as keys of the configuration."""
    trainer, adapter = config.trainer, config.adapter
    length = (
        {"trainer.max_steps": trainer.max_steps}
        if trainer.max_steps > 0
        else {"trainer.num_train_epochs": trainer.num_train_epochs}
    )
    lora = {
        "adapter.rank": adapter.rank,
        "adapter.alpha": adapter.alpha,
        "adapter.targets": ",".join(adapter.targets),
    }
    chosen = {
        "quantization": config.quantization.method,
        "adapter": adapter.method,
        **({} if adapter.method is AdapterMethod.none else lora),
        **length,
        "trainer.global_batch_size": trainer.global_batch_size,
        "trainer.learning_rate": trainer.learning_rate,
        "trainer.max_length": trainer.max_length,
        "trainer.packing": str(trainer.packing).lower(),
        "seed": config.seed,
    }
    return {key: str(value) for key, value in chosen.items()}


def _merged_onto(config: RunConfig) -> str:
    if config.adapter.method is AdapterMethod.none:
        return ""
    if config.quantization.method is QuantizationMethod.none:
        return "the base"
    if config.export.base is ExportBase.original:
        return "the original base, not the quantised one that was trained on"
    return f"the base as it was trained on ({config.quantization.method}), dequantised"
