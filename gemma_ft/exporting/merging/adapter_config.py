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
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
)

WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",  # matters through init_lora_weights only, like the three after it
    "eva_config",
    "lora_ga_config",
    "loftq_config",
    "ensure_weight_tying",  # a promise about training; the tensors show whether it was kept
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
    "megatron_config": "is for Megatron's layers",
    "monteclora_config": "samples its weights",
    "target_parameters": "adapts parameters that are no linear layers",
    "use_bdlora": "stores block-diagonal matrices",
    "use_qalora": "pools the inputs",
    "velora_config": "stores another kind of matrices",
}

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_BY_PEFT = "Merge this adapter with PEFT."
_AS_PLAIN_LORA = (
    "Save it as a plain LoRA, with PEFT's path_initial_model_for_weight_conversion, or merge this adapter "
    "with PEFT."
)


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

    @property
    def lora_bias(self) -> bool:
        """Say whether each layer's B has a bias."""
        return bool(self.values.get("lora_bias"))

    @property
    def bias(self) -> str:
        """Return which biases of the base were trained: none, lora_only or all."""
        return str(self.values.get("bias", "none"))

    def rank(self, module: str) -> int:
        """Return the inner dimension of a module's adapter."""
        found = _by_pattern(self.values.get("rank_pattern"), module)
        return int(found[0] if found else self.values.get("r", 8))

    def scale(self, module: str) -> float:
        """Return the factor on B @ A: alpha / rank, or alpha / sqrt(rank) with rslora.

        Raises:
            ExportError: Two patterns give the module different alphas. PEFT obeys the first, but saves them
                sorted, so the order that training had is lost.
            ValueError: It is not finite.
        """
        found = _by_pattern(self.values.get("alpha_pattern"), module)
        if len(set(found)) > 1:
            raise ExportError(
                f"{self.source}: alpha_pattern gives {module} both {found[0]} and {found[1]}, and the order "
                "that training had is not saved. Keep only the pattern that it was trained with."
            )
        alpha = found[0] if found else self.values.get("lora_alpha", 8)
        rank = self.rank(module)
        scale = float(alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank))
        if not math.isfinite(scale):
            raise ValueError(f"its alpha gives {module} the scale {scale}")
        return scale


def _by_pattern(patterns: Any, module: str) -> list[Any]:
    return [value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module)]


def check_adapter_config(values: Mapping[str, Any], source: str) -> AdapterSettings:
    """Accept the configuration of a LoRA adapter whose merge is PEFT's own, bit for bit.

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
    _check_start(values, source)
    _check_biases(values, source)
    for key, value in values.items():
        if key not in OBEYED + WITHOUT_EFFECT and value not in (None, False, [], {}):
            why = REFUSED.get(key, "is unknown here and may change the weights")
            raise _refusal(source, key, values, why)
    return AdapterSettings(source, values)


def _check_start(values: Mapping[str, Any], source: str) -> None:
    start = values.get("init_lora_weights", True)
    if start in _PLAIN_STARTS:
        return
    kind = str(start).lower()
    if kind == "mica":
        raise _refusal(source, "init_lora_weights", values, "is rounded twice in PEFT's merge")
    convertible = kind.startswith(("pissa", "olora", "corda", "lora_ga"))
    raise _refusal(
        source,
        "init_lora_weights",
        values,
        "changes the base weights before training",
        _AS_PLAIN_LORA if convertible else _BY_PEFT,
    )


def _check_biases(values: Mapping[str, Any], source: str) -> None:
    if values.get("bias", "none") not in ("none", "all", "lora_only"):
        raise _refusal(source, "bias", values, "is no choice that PEFT has")
    if values.get("lora_bias"):
        if values.get("bias", "none") != "none":
            raise _refusal(source, "bias", values, "trains the biases that lora_bias=True adds to")
        if values.get("use_dora"):
            raise _refusal(source, "lora_bias", values, "has no meaning beside use_dora=True")


def _refusal(source: str, key: str, values: Mapping[str, Any], why: str, cure: str = _BY_PEFT) -> ExportError:
    return ExportError(f"{source}: {key}={values.get(key)} {why}, which export cannot merge. {cure}")
