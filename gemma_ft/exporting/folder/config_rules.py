"""The loaders' rules about config.json and generation_config.json: names old and new, and the stops.

A rule yields what a loader cannot do with the model, and raises what would be refused or misread.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gemma_ft.exporting.folder.tokenizer_files import special_token_ids
from gemma_ft.exporting.folder.written import Written
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES

_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
)
_FURTHER_SHAPE = {
    "gemma": (),
    "gemma2": ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3_text": ("sliding_window",),
}
_TANH = "gelu_pytorch_tanh"
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def architecture_is_the_familys(written: Written) -> Iterator[str]:
    """Ollama and llama.cpp's converter choose by the first of architectures, transformers by model_type."""
    family, config = written.family, written.config
    if config.get("architectures") != [family.architecture] or config.get("model_type") != family.model_type:
        found = f"{config.get('architectures')} of type {config.get('model_type')}"
        raise written.refusal("vLLM and Ollama", f"config.json says {found}, not {family.architecture}")
    yield from ()


def settings_are_those_of_a_plain_model(written: Written) -> Iterator[str]:
    """A quantization_config would have the weights taken for quantised ones."""
    config = written.config
    for key in ("quantization_config", "auto_map", "_name_or_path"):
        if key in config:
            raise written.refusal("transformers and vLLM", f"config.json has {key}, which is not true of it")
    if config.get("use_cache") is not True:
        raise written.refusal(
            "transformers", "config.json has no use_cache: true, so each token costs a pass"
        )
    if "tie_word_embeddings" not in config:
        raise written.refusal("vLLM", "config.json has no tie_word_embeddings")
    yield from ()


def shape_is_spelled_out(written: Written) -> Iterator[str]:
    """Ollama takes what config.json does not say for zero; transformers has defaults."""
    needed = (*_SHAPE, *_FURTHER_SHAPE[written.family.model_type])
    if absent := [key for key in needed if key not in written.config]:
        yield f"config.json names no {absent[0]}, as the base's: Ollama takes it for 0, others for a default."


def number_format_is_named_twice(written: Written) -> Iterator[str]:
    """Transformers 5 reads dtype, transformers 4 and vLLM torch_dtype."""
    new, old = written.config.get("dtype"), written.config.get("torch_dtype")
    stored = {FLOAT_NAMES.get(tensor.dtype, tensor.dtype) for tensor in written.tensors.values()}
    if new != old or new not in stored:
        raise written.refusal(
            "transformers and vLLM",
            f"config.json has dtype {new} and torch_dtype {old}, the weights are {', '.join(sorted(stored))}",
        )
    yield from ()


def activation_is_named_twice(written: Written) -> Iterator[str]:
    """VLLM compares both names in Gemma 2 and takes nothing but the tanh form in Gemma 2 and 3."""
    new, old = written.config.get("hidden_activation"), written.config.get("hidden_act")
    if new is None or (old != new and written.family.model_type != "gemma3_text"):
        raise written.refusal("vLLM", f"config.json has hidden_activation {new} and hidden_act {old}")
    if new != _TANH:
        yield f"its activation is {new}: vLLM refuses it, and llama.cpp and Ollama compute {_TANH} instead."


def rotation_is_named_twice(written: Written) -> Iterator[str]:
    """Transformers 5 reads rope_parameters; transformers 4, vLLM and Ollama rope_theta and rope_scaling."""
    config = written.config
    new = config.get("rope_parameters") or {}
    if written.family.model_type == "gemma3_text":
        full, local = new.get(_GLOBAL) or {}, new.get(_LOCAL) or {}
        pairs = [("rope_theta", full), ("rope_local_base_freq", local)]
    else:
        full, pairs = new, [("rope_theta", new)]
    for key, parameters in pairs:
        if key not in config or config[key] != parameters.get("rope_theta"):
            told = f"{key} {config.get(key)} and rope_parameters {dict(new)}"
            raise written.refusal("transformers and vLLM", f"config.json has {told}, which differ")
    if (config.get("rope_scaling") or None) != _scaling(full):
        told = f"rope_scaling {config.get('rope_scaling')} and rope_parameters {dict(full)}"
        raise written.refusal("transformers and vLLM", f"config.json has {told}, which differ")
    yield from ()


def _scaling(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    if parameters.get("rope_type", "default") == "default":
        return None
    return {key: value for key, value in parameters.items() if key != "rope_theta"}


def layers_look_as_far_as_old_readers_think(written: Written) -> Iterator[str]:
    """Gemma 2 alternates for readers without layer_types; Gemma 3 has sliding_window_pattern for them."""
    config, layers = written.config, written.config.get("layer_types")
    if written.family.model_type == "gemma" or not layers:
        return  # every reader then takes the same: none, every second, every sixth or as the pattern says
    period = 2 if written.family.model_type == "gemma2" else config.get("sliding_window_pattern")
    expected = None if not period else [_LOCAL if (i + 1) % period else _GLOBAL for i in range(len(layers))]
    if list(layers) == expected:
        return
    if period and written.family.model_type == "gemma3_text":
        raise written.refusal("transformers before 5", f"layer_types is not sliding_window_pattern {period}")
    yield "its layer_types follow no period: transformers before 4.53 and llama.cpp read another model."


def generation_ends(written: Written) -> Iterator[str]:
    """A lone <eos> as the stop makes a chat model talk on; Ollama reads a list only."""
    stops = written.generation.get("eos_token_id")
    end = special_token_ids(written.folder).get("end_of_turn", written.family.end_of_turn_id)
    if not isinstance(stops, list) or end not in stops:
        why = f"generation_config.json has eos_token_id {stops}, not a list with {end}, so it would talk on"
        raise written.refusal("transformers and Ollama", why)
    if "_from_model_config" in written.generation:
        why = "generation_config.json has _from_model_config, with which it is built anew from config.json"
        raise written.refusal("transformers", why)
    yield from ()


CONFIG_RULES = (
    architecture_is_the_familys,
    settings_are_those_of_a_plain_model,
    shape_is_spelled_out,
    number_format_is_named_twice,
    activation_is_named_twice,
    rotation_is_named_twice,
    layers_look_as_far_as_old_readers_think,
    generation_ends,
)
