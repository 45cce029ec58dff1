"""Low-rank adapters on a loaded model."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.config.schema import AdapterConfig
from gemma_ft.errors import ConfigError
from gemma_ft.families import LINEAR_LAYERS

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger("gemma_ft")


def build_lora(adapter: AdapterConfig) -> "LoraConfig":
    """Build PEFT's settings from ours."""
    from peft import LoraConfig

    targets = _target_layers(adapter)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
    )


def _target_layers(adapter: AdapterConfig) -> list[str]:
    return [
        layer for name in adapter.targets for layer in (LINEAR_LAYERS if name == "all-linear" else (name,))
    ]


def _check_targets(model: "PreTrainedModel", adapter: AdapterConfig) -> None:
    """Refuse targets of which one matches nothing, which PEFT only says where none of them matches."""
    names = [f".{name}" for name, _ in model.named_modules()]
    problems = [
        f"adapter.targets=[{target}] matches no layer of this model, which has "
        f"{model.config.num_hidden_layers} blocks, counted from 0. "
        f"Choose among {', '.join(LINEAR_LAYERS)}, or use adapter.targets=[all-linear]."
        for target in _target_layers(adapter)
        if not any(name.endswith(f".{target}") for name in names)
    ]
    if problems:
        raise ConfigError(*problems)


def attach_adapter(model: "PreTrainedModel", adapter: AdapterConfig) -> "PeftModel":
    """Put trainable adapters on a model, whose own weights are frozen: new ones, or those of `adapter.path`.

    Raises:
        ConfigError: A target matches no layer, or the existing adapter is for another model.
    """
    from peft import PeftModel, get_peft_model

    if adapter.path is None:
        _check_targets(model, adapter)
    try:
        if adapter.path is None:
            peft_model: PeftModel = get_peft_model(model, build_lora(adapter))
        else:
            folder = Path(adapter.path).expanduser()
            peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(_explain(adapter, error)) from error
    if adapter.path is not None:
        own = peft_model.peft_config["default"]
        logger.info(
            "adapter %s goes on with its own rank %s, alpha %s and dropout %s",
            adapter.path,
            own.r,
            own.lora_alpha,
            own.lora_dropout,
        )
    return peft_model


def save_adapter(model: "PeftModel", folder: Path, *, base: str, revision: str | None) -> None:
    """Write an adapter as PEFT does, naming the base it was trained on and its commit on the hub."""
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = base, revision
    model.save_pretrained(folder, save_embedding_layers=False)


def _explain(adapter: AdapterConfig, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:200]
    if adapter.path is None:
        return (
            f"adapter.targets=[{','.join(adapter.targets)}] matches no layer ({reason}). "
            f"Choose among {', '.join(LINEAR_LAYERS)}, or use adapter.targets=[all-linear]."
        )
    made_for = json.loads((Path(adapter.path).expanduser() / "adapter_config.json").read_text()).get(
        "base_model_name_or_path"
    )
    return f"adapter.path={adapter.path} does not fit this model; it was trained on {made_for} ({reason})."
