"""From a checkpoint on disk to a model that trains or answers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import QuantizationConfig, QuantizationMethod
from gemma_ft.modeling.checkpoint import Checkpoint, fetch_weights
from gemma_ft.modeling.libraries import keep_4bit_weights_as_they_are
from gemma_ft.modeling.precision import Precision

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def build_quantization(
    quantization: QuantizationConfig, dtype: "torch.dtype", *, sharded: bool = False
) -> "BitsAndBytesConfig | None":
    """Build bitsandbytes' settings, or None for weights as they are.

    Args:
        quantization: The method.
        dtype: Number format that computes.
        sharded: Whether FSDP cuts the weights, which it does to floating-point numbers only.
    """
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
                bnb_4bit_quant_storage=dtype if sharded else "uint8",
            )


def load_model(
    checkpoint: Checkpoint,
    precision: Precision,
    quantization: QuantizationConfig,
    *,
    dtype: "torch.dtype",
    sharded: bool = False,
) -> "PreTrainedModel":
    """Load the weights onto this process's device.

    Args:
        checkpoint: What to load.
        precision: The device and its attention implementation.
        quantization: Storage of the linear layers' weights.
        dtype: Number format of all other weights.
        sharded: Whether FSDP shares the model out. Then the first process of a machine reads the weights into
            its memory for all; 4-bit ones every process reads, and stores so that they can be cut.

    Raises:
        HubError: The weights cannot be downloaded.
        ModelError: There are no safetensors.
    """
    from transformers import AutoModelForCausalLM

    folder = fetch_weights(checkpoint)
    extra: dict[str, Any] = {}
    if (settings := build_quantization(quantization, dtype, sharded=sharded)) is not None:
        extra["quantization_config"] = settings
    if not sharded or settings is not None:
        extra["device_map"] = {"": _device_index(precision)}
    with _read_by_one(sharded and settings is None):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=precision.attention.value,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,  # left out, transformers would ask on the terminal
            **extra,
        )
    keep_4bit_weights_as_they_are(model)
    if model.config.tie_word_embeddings:  # no checkpoint holds the head, and none misses it
        model._keys_to_ignore_on_save = ["lm_head.weight"]
    return model


@contextmanager
def _read_by_one(wanted: bool) -> Iterator[None]:
    """Have transformers read the weights in the first process of a machine only, which FSDP shares out."""
    names = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING") if wanted else ()
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "true"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _device_index(precision: Precision) -> "torch.device":
    import torch

    if precision.device.kind in ("cuda", "xpu"):
        # a cluster may show each process one GPU, which is its first
        index = int(os.environ.get("LOCAL_RANK", "0")) % max(precision.device.count, 1)
        return torch.device(precision.device.kind, index)
    return torch.device(precision.device.kind)
