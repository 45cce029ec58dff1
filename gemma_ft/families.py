"""What is true of each Gemma generation: tokens, template, stop ids, layers, attention, licence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_ft.errors import ModelError

GEMMA_TERMS_URL = "https://ai.google.dev/gemma/terms"
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
)

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder block, the same in every generation."""

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
BOS_ID = 2
START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"
USER_HEADER = "user\n"
MODEL_HEADER = "model\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One generation of Gemma's causal-LM text models."""

    name: str
    """What people call it, for messages."""
    model_type: str
    """`model_type` in the checkpoint's config.json."""
    architecture: str
    """The transformers class, and the only entry of `architectures`."""
    decoder_layer: str
    """The class that FSDP wraps."""
    context_length: int
    """Positions the checkpoints of this generation were made for, where config.json is not at hand."""
    attention: tuple[str, ...]
    """Implementations that compute this generation's attention exactly, best first."""
    fp16_safe: bool
    """Whether activations stay within fp16's range."""
    start_of_turn_id: int = 106
    end_of_turn_id: int = 107
    license: str = "gemma"
    """Licence identifier of the hub's front matter."""
    license_url: str = GEMMA_TERMS_URL
    notice: str = GEMMA_NOTICE


FAMILIES = (
    Family(
        name="Gemma 1",
        model_type="gemma",
        architecture="GemmaForCausalLM",
        decoder_layer="GemmaDecoderLayer",
        context_length=8192,
        attention=("flash_attention_2", "sdpa", "eager"),
        fp16_safe=True,
    ),
    Family(
        name="Gemma 2",
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        decoder_layer="Gemma2DecoderLayer",
        context_length=8192,
        attention=("flash_attention_2", "eager"),  # sdpa cannot cap the logits
        fp16_safe=True,
    ),
    Family(
        name="Gemma 3",
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        decoder_layer="Gemma3DecoderLayer",
        context_length=32768,
        attention=("flash_attention_2", "sdpa", "eager"),
        fp16_safe=False,
        start_of_turn_id=105,
        end_of_turn_id=106,
    ),
)

_KINDRED = {
    "gemma3": "Gemma 3 with vision",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
    "paligemma": "PaliGemma",
    "recurrent_gemma": "RecurrentGemma",
    "t5gemma": "T5Gemma",
}


def family_of(config: Mapping[str, object], where: str) -> Family:
    """Find the family of a checkpoint.

    Args:
        config: The checkpoint's config.json.
        where: The value of `model.path`, for the message.

    Raises:
        ModelError: It is not a causal-LM text Gemma; the message names what it is.
    """
    model_type = str(config.get("model_type", "unknown"))
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if family.model_type == model_type:
            if isinstance(architectures, list) and architectures and family.architecture not in architectures:
                raise ModelError(_refusal(where, f"{architectures[0]}, which has no language-model head"))
            return family
    raise ModelError(_refusal(where, _KINDRED.get(model_type, f"a model of type {model_type!r}")))


def _refusal(where: str, found: str) -> str:
    known = ", ".join(family.name for family in FAMILIES)
    return f"model.path={where} is {found}. Use a causal-LM text model of {known}."


def family_of_hub_id(path: str) -> Family | None:
    """Guess the family from a `google/...` id, for checks before anything is downloaded."""
    owner, _, name = path.lower().partition("/")
    if owner != "google" or not name:
        return None
    if name.startswith("gemma-2-"):
        return FAMILIES[1]
    if name.startswith(("gemma-3-270m", "gemma-3-1b")):
        return FAMILIES[2]
    if name.startswith(("gemma-2b", "gemma-7b", "gemma-1.1-", "codegemma-")):
        return FAMILIES[0]
    return None


def load_chat_template() -> str:
    """Read the Jinja form of the turn format, for checkpoints whose tokenizer carries none."""
    return (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
