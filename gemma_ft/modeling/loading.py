"""From a checkpoint on disk to a model that trains or answers."""

import os
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import QuantizationConfig, QuantizationMethod
from gemma_ft.modeling.checkpoint import Checkpoint, fetch_weights
from gemma_ft.modeling.libraries import keep_4bit_weights_as_they_are
from gemma_ft.modeling.precision import Precision

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def build_quantization(quantization: QuantizationConfig, dtype: "torch.dtype") -> "BitsAndBytesConfig | None":
    """Build bitsandbytes' settings, or None for weights as they are."""
    from transformers import BitsAndBytesConfig

    match quantization.method:
        case QuantizationMethod.none:
            return None
        case QuantizationMethod.int8:
            return BitsAndBytesConfig(load_in_8bit=True)
        case QuantizationMethod.nf4:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=quantization.double_quant,
                bnb_4bit_compute_dtype=dtype,
            )


def load_model(
    checkpoint: Checkpoint, precision: Precision, quantization: QuantizationConfig, *, dtype: "torch.dtype"
) -> "PreTrainedModel":
    """Load the weights onto this process's device.

    Args:
        checkpoint: What to load.
        precision: The device and its attention implementation.
        quantization: Storage of the linear layers' weights.
        dtype: Number format of all other weights.

    Raises:
        HubError: The weights cannot be downloaded.
        ModelError: There are no safetensors.
    """
    from transformers import AutoModelForCausalLM

    folder = fetch_weights(checkpoint)
    extra: dict[str, Any] = {}
    if (settings := build_quantization(quantization, dtype)) is not None:
        extra["quantization_config"] = settings
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=precision.attention.value,
        device_map={"": _device_index(precision)},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,  # left out, transformers would ask on the terminal
        **extra,
    )
    keep_4bit_weights_as_they_are(model)
    if model.config.tie_word_embeddings:  # no checkpoint holds the head, and none misses it
        model._keys_to_ignore_on_save = ["lm_head.weight"]
    return model


def _device_index(precision: Precision) -> "torch.device":
    import torch

    if precision.device.kind in ("cuda", "xpu"):
        return torch.device(precision.device.kind, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(precision.device.kind)
