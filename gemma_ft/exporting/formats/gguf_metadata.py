"""What a GGUF file says of the model: the keys that llama.cpp's loader and transformers' reader look for.

llama.cpp knows some things of Gemma by itself and cannot be told otherwise: which layers slide, how attention
is scaled, the activation (src/models/gemma*.cpp). A model that differs there is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.formats.gguf_vocabulary import UNKNOWN, Vocabulary
from gemma_ft.exporting.merging.tensor_files import read_json
from gemma_ft.families import BOS, END_OF_TURN, EOS, PAD, load_chat_template

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig

ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
"""llama.cpp's name of each `model_type`."""

_PERIOD = {"gemma2": 2, "gemma3_text": 6}  # every so many layers, one attends to everything
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3_text": 62}  # layers of the one size whose attention is scaled so
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def load_config(folder: Path) -> "PretrainedConfig":
    """Load config.json with all defaults filled in.

    Raises:
        ExportError: llama.cpp would compute something else than this model.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if fault := _find_fault(config):
        raise ExportError(
            f"{folder} cannot be written as GGUF: llama.cpp knows no Gemma with {fault}. "
            "Leave the gguf formats out of export.formats."
        )
    return config


def _find_fault(config: "PretrainedConfig") -> str | None:
    if not config.tie_word_embeddings:
        return "a head of its own (tie_word_embeddings=false)"
    if config.attention_bias:
        return "attention_bias=true"
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != "gelu_pytorch_tanh":
        return f"hidden_activation={activation}"
    for name, rope in _ropes(config).items():
        allowed = ("default",) if name == "sliding_attention" else ("default", "linear")
        if rope.get("rope_type", "default") not in allowed:
            return f"rope_type={rope['rope_type']} in {name}"
    if config.model_type not in _PERIOD:
        return None
    return _find_later_fault(config)


def _find_later_fault(config: "PretrainedConfig") -> str | None:
    """Check what only Gemma 2 and 3 have."""
    count, period = config.num_hidden_layers, _PERIOD[config.model_type]
    expected = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]
    if list(config.layer_types) != expected:
        return f"other layer_types than full_attention in every {period}th layer"
    by_width = count == _SCALED_BY_WIDTH[config.model_type]
    scale = config.hidden_size // config.num_attention_heads if by_width else config.head_dim
    if config.query_pre_attn_scalar != scale:
        return f"query_pre_attn_scalar={config.query_pre_attn_scalar}, which has to be {scale}"
    if getattr(config, "use_bidirectional_attention", None):
        return "use_bidirectional_attention=true"
    capped = config.model_type == "gemma2"
    if (config.attn_logit_softcapping is not None) is not capped:
        return f"attn_logit_softcapping={config.attn_logit_softcapping}"
    if capped and config.final_logit_softcapping is None:
        return "final_logit_softcapping=null"
    return None


def _ropes(config: "PretrainedConfig") -> dict[str, Mapping[str, Any]]:
    parameters = config.rope_parameters
    if "rope_theta" in parameters:
        return {"full_attention": parameters}
    return {name: parameters[name] for name in ("full_attention", "sliding_attention")}


def describe_model(writer: "GGUFWriter", config: "PretrainedConfig") -> None:
    """Add the architecture's keys."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _describe_rope(writer, _ropes(config))
    if config.model_type not in _PERIOD:
        return
    writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _describe_rope(writer: "GGUFWriter", ropes: Mapping[str, Mapping[str, Any]]) -> None:
    from gguf import RopeScalingType

    full, sliding = ropes["full_attention"], ropes.get("sliding_attention")
    writer.add_rope_freq_base(full["rope_theta"])
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if sliding is not None:
        writer.add_rope_freq_base_swa(sliding["rope_theta"])


def describe_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary, folder: Path) -> None:
    """Add the tokens, what begins and ends a text and a turn, and the chat template."""
    find = vocabulary.tokens.index
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(find(BOS))
    writer.add_eos_token_id(find(EOS))
    writer.add_pad_token_id(find(PAD))
    writer.add_unk_token_id(find(UNKNOWN))
    writer.add_eot_token_id(find(END_OF_TURN))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(_load_template(folder))


def _load_template(folder: Path) -> str:
    """Read a checkpoint's chat template; Gemma's own where it has several or none."""
    for name in _TEMPLATES:
        path = folder / name
        if not path.is_file():
            continue
        found = path.read_text(encoding="utf-8") if path.suffix == ".jinja" else _template_in(path)
        if isinstance(found, str) and found:
            return found
    return load_chat_template()


def _template_in(path: Path) -> Any:
    return read_json(path).get("chat_template")
