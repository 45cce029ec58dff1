"""Low-rank adapters on a loaded model."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.config.schema import AdapterConfig
from gemma_ft.errors import ConfigError
from gemma_ft.families import LINEAR_LAYERS

if TYPE_CHECKING:
    import torch
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
    from safetensors import SafetensorError

    if adapter.path is None:
        _check_targets(model, adapter)
    try:
        if adapter.path is None:
            peft_model: PeftModel = get_peft_model(model, build_lora(adapter))
        else:
            folder = Path(adapter.path).expanduser()
            peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
            _check_loaded(peft_model, folder, adapter)
    except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
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


def _check_loaded(model: "PeftModel", folder: Path, adapter: AdapterConfig) -> None:
    """Refuse weights that its adapter_config.json has no place for, or places without weights.

    PEFT leaves the former out without a word and begins the latter anew.
    """
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        held = _matrices(file.keys())
    places = _matrices(model.state_dict())
    if held != places:
        raise ConfigError(
            f"adapter.path={adapter.path} is not whole: of the matrices that its adapter_config.json asks "
            f"for {len(places - held)} are missing, and {len(held - places)} others are there. "
            "Fetch or save it again."
        )


def _matrices(names: Iterable[str]) -> set[str]:
    """Name adapter matrices by their place in the blocks, which the classes around a model leave alone."""
    return {
        name.partition("layers.")[2].replace(".default.", ".")
        for name in names
        if ".lora_A." in name or ".lora_B." in name
    }


def save_adapter(
    model: "PeftModel",
    folder: Path,
    *,
    base: str,
    revision: str | None,
    weights: "dict[str, torch.Tensor] | None" = None,
) -> None:
    """Write an adapter as PEFT does, naming the base it was trained on and its commit on the hub.

    Args:
        model: What was trained.
        folder: Where it goes.
        base: The base it was trained on.
        revision: The base's commit on the hub.
        weights: The trained weights whole, where the model holds shards of them.
    """
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = base, revision
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)


def _explain(adapter: AdapterConfig, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, KeyError):
        reason = f"nothing known as {reason}"
    if adapter.path is None:
        return (
            f"adapter.targets=[{','.join(adapter.targets)}] matches no layer ({reason}). "
            f"Choose among {', '.join(LINEAR_LAYERS)}, or use adapter.targets=[all-linear]."
        )
    made_for = json.loads((Path(adapter.path).expanduser() / "adapter_config.json").read_text()).get(
        "base_model_name_or_path"
    )
    return f"adapter.path={adapter.path} does not fit this model; it was trained on {made_for} ({reason})."
