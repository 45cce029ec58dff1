"""What an adapter_config.json may say for its adapter to be merged, and what follows from it for each layer.

Every key that changes the merged weights is either obeyed or refused by name; a key nobody here has heard of
is refused too, as soon as it is switched on.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_ft.errors import ExportError

OBEYED = (
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
    "bias",
)

WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",  # matters through init_lora_weights only, like the three after it
    "eva_config",
    "lora_ga_config",
    "loftq_config",
    "ensure_weight_tying",  # about modules_to_save and embeddings, which are refused
    "inference_mode",
    "lora_dropout",
    "megatron_core",  # a module's name, unused without megatron_config
    "peft_version",
    "qalora_group_size",  # unused without use_qalora
    "revision",
    "runtime_config",
)

REFUSED = {
    "alora_invocation_tokens": "switches the adapter on in the middle of a text",
    "arrow_config": "chooses between adapters for each token",
    "fan_in_fan_out": "is for transposed weights, which Gemma does not have",
    "kasa_config": "changes the base weights too",
    "layer_replication": "adds layers to the model",
    "lora_bias": "trains biases, which Gemma does not have",
    "megatron_config": "is for Megatron's layers",
    "modules_to_save": "trains whole modules beside the adapters",
    "monteclora_config": "samples its weights",
    "target_parameters": "adapts parameters that are no linear layers",
    "trainable_token_indices": "trains single rows of the embedding",
    "use_bdlora": "stores block-diagonal matrices",
    "use_qalora": "pools the inputs",
    "velora_config": "stores another kind of matrices",
}

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """The part of an adapter's configuration that decides the merged weights."""

    source: str
    """Path of the file, for messages."""
    values: Mapping[str, Any]

    @property
    def dora(self) -> bool:
        """Say whether each layer carries trained magnitudes."""
        return bool(self.values.get("use_dora"))

    def rank(self, module: str) -> int:
        """Return the inner dimension of a module's adapter."""
        return int(_by_pattern(self.values.get("rank_pattern"), module, self.values.get("r", 8)))

    def scale(self, module: str) -> float:
        """Return the factor on B @ A: alpha / rank, or alpha / sqrt(rank) with rslora."""
        alpha = _by_pattern(self.values.get("alpha_pattern"), module, self.values.get("lora_alpha", 8))
        rank = self.rank(module)
        return float(alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank))

    def targets(self, module: str) -> bool:
        """Say whether a linear module is one of those that were given an adapter."""
        if _named(self.values.get("exclude_modules"), module):
            return False
        names = self.values.get("target_modules")
        if isinstance(names, str) and names.lower() == "all-linear":
            return module.rpartition(".")[2] not in ("embed_tokens", "lm_head")
        if isinstance(names, str) or module in (names or ()):
            return _named(names, module)
        return _named(names, module) and self._layer_chosen(module)

    def _layer_chosen(self, module: str) -> bool:
        layers = self.values.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.values.get("layers_pattern") or r"[^.]*"
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if found:
                return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
        return False


def _named(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _by_pattern(patterns: Any, module: str, otherwise: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def check_adapter_config(values: Mapping[str, Any], source: str) -> AdapterSettings:
    """Accept the configuration of a plain LoRA, rsLoRA or DoRA adapter.

    Args:
        values: The content of adapter_config.json.
        source: Its path, for messages.

    Raises:
        ExportError: A key is set that this merge does not support; the message names it.
    """
    if str(values.get("peft_type")).upper() != "LORA":
        raise _refusal(source, "peft_type", values, "is no LoRA")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        raise _refusal(source, "task_type", values, "is no causal language model")
    if values.get("bias", "none") != "none":
        raise _refusal(source, "bias", values, "trains biases, which Gemma does not have")
    if values.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise _refusal(source, "init_lora_weights", values, "changes the base weights before training")
    for key, value in values.items():
        if key not in OBEYED + WITHOUT_EFFECT and value not in (None, False, [], {}):
            why = REFUSED.get(key, "is unknown here and may change the weights")
            raise _refusal(source, key, values, why)
    return AdapterSettings(source, values)


def _refusal(source: str, key: str, values: Mapping[str, Any], why: str) -> ExportError:
    return ExportError(
        f"{source}: {key}={values.get(key)} {why}, which export cannot merge. Merge this adapter with PEFT."
    )
