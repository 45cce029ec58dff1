"""config.json and generation_config.json of an export, in the words of old and new readers alike.

transformers 5 renamed torch_dtype to dtype and moved rope_theta into rope_parameters; transformers 4, vLLM
and llama.cpp's converter read the old names. Both are written.
"""

from collections.abc import Mapping
from typing import Any

from gemma_ft.families import Family

_ACTIVATION = "gelu_pytorch_tanh"
_THETA = 10_000.0
_GEMMA3_THETA = 1_000_000.0
_DROPPED = ("quantization_config", "_name_or_path")


def export_config(config: Mapping[str, Any], family: Family, dtype: str) -> dict[str, Any]:
    """Build config.json.

    Args:
        config: The base's.
        family: The base's family.
        dtype: Number format of the weights, in torch's words, such as bfloat16.
    """
    made = {key: value for key, value in config.items() if key not in _DROPPED}
    made |= {
        "architectures": [family.architecture],
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "hidden_activation": _activation(config),
    }
    if family.model_type != "gemma3_text":  # vLLM compares the two names in Gemma 2
        made["hidden_act"] = _activation(config)
    made |= _nested_rope(config) if family.model_type == "gemma3_text" else _flat_rope(config)
    return made


def _activation(config: Mapping[str, Any]) -> str:
    named = config.get("hidden_activation") or config.get("hidden_act")
    return _ACTIVATION if named in (None, "gelu") else str(named)  # the released "gelu" always meant tanh


def _flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    new = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or _scaling_of(new)
    theta = new.get("rope_theta") or config.get("rope_theta") or _THETA
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), **new, "rope_theta": theta},
    }


def _nested_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    new = config.get("rope_parameters") or {}
    full, sliding = new.get("full_attention") or {}, new.get("sliding_attention") or {}
    scaling = config.get("rope_scaling") or _scaling_of(full)
    theta = full.get("rope_theta") or config.get("rope_theta") or _GEMMA3_THETA
    local = sliding.get("rope_theta") or config.get("rope_local_base_freq") or _THETA
    made: dict[str, Any] = {
        "rope_theta": theta,
        "rope_local_base_freq": local,
        "rope_scaling": scaling,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", **(scaling or {}), **full, "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", **sliding, "rope_theta": local},
        },
    }
    if pattern := _sliding_pattern(config):
        made["sliding_window_pattern"] = pattern
    return made


def _scaling_of(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    if parameters.get("rope_type", "default") == "default":
        return None
    return {key: value for key, value in parameters.items() if key != "rope_theta"}


def _sliding_pattern(config: Mapping[str, Any]) -> int | None:
    """Return what layer_types is called by old readers, if they need it: the period of global attention."""
    layers = config.get("layer_types")
    if config.get("sliding_window_pattern") or not layers:
        return None
    count = len(layers)
    periods: list[int] = [6, *range(1, count + 1)]  # six is what every release has
    for period in periods:
        if layers == ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]:
            return period
    return None


def export_generation_config(
    generation: Mapping[str, Any], config: Mapping[str, Any], tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Build generation_config.json.

    Args:
        generation: The base's; empty where it has none.
        config: The base's config.json.
        tokens: Ids of the tokenizer's special tokens: eos, end_of_turn, bos, pad, and end_of_text
            where that is another than eos, as far as it has them.
    """
    made = {key: value for key, value in generation.items() if key != "_from_model_config"}
    named = [tokens.get(name) for name in ("end_of_text", "eos", "end_of_turn")]
    stops = [*named, *_listed(generation.get("eos_token_id"))]
    if tokens.get("eos") is None:
        stops = [*_listed(config.get("eos_token_id")), *stops]
    made["eos_token_id"] = list(dict.fromkeys(stop for stop in stops if stop is not None))
    for key, name in (("bos_token_id", "bos"), ("pad_token_id", "pad")):
        token = tokens.get(name, generation.get(key, config.get(key)))
        if token is not None:
            made[key] = token
    return made


def _listed(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]
