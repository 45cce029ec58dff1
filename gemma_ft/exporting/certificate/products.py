"""Products of linear layers in other arithmetic than torch's own for their number format."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from gemma_ft.exporting.certificate.streaming import Product

OUTLIER_THRESHOLD = 6.0
"""Activations from here on are not quantised: Dettmers et al. 2022, section 3.2; transformers' default."""


def int8_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply as an int8 model does: weights and activations through 8 bit, by bitsandbytes itself.

    Quantising what was dequantised gives the same 8 bits and scales again: each row's largest value is kept.
    """
    import bitsandbytes

    state = bitsandbytes.MatmulLtState()
    state.has_fp16_weights = False
    state.is_training = False  # training on a CPU, and nothing else, leaves activations as they are
    state.threshold = OUTLIER_THRESHOLD
    product: torch.Tensor = bitsandbytes.matmul(x, weight.data, bias=bias, state=state)
    return product


def widened_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply half-precision numbers with float32 sums, and round once."""
    wide = None if bias is None else bias.float()
    return nn.functional.linear(x.float(), weight.float(), wide).to(x.dtype)


def bf16_product() -> "Product | None":
    """Return what multiplies bf16 numbers on this processor; None for torch's own.

    Where the processor lacks the instructions, torch's own takes hours for a large model.
    """
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return None if known is not None and known() else widened_product
