"""How much arithmetic a training step asks for, and how much a device can do."""

import re
from dataclasses import dataclass
from typing import Any

PEAKS = (
    (r"\bT4\b", 65e12, "NVIDIA T4, FP16 tensor cores (it has no bf16)"),
    (r"\bL4\b", 121e12, "NVIDIA L4, BF16 tensor cores, 242 with sparsity"),
    (r"\bA100\b", 312e12, "NVIDIA A100, BF16 tensor cores"),
    (r"\bH100\b.*\bPCIe\b", 756e12, "NVIDIA H100 PCIe, BF16 tensor cores, 1513 with sparsity"),
    (r"\bH100\b.*\bNVL\b", 835e12, "NVIDIA H100 NVL, BF16 tensor cores, 1671 with sparsity"),
    (r"\bH100\b", 989e12, "NVIDIA H100 SXM, BF16 tensor cores, 1979 with sparsity"),
    (r"\bH200\b.*\bNVL\b", 836e12, "NVIDIA H200 NVL, BF16 tensor cores, 1671 with sparsity"),
    (r"\bH200\b", 989e12, "NVIDIA H200 SXM, BF16 tensor cores, 1979 with sparsity"),
    (r"\bMI300X\b", 1307e12, "AMD Instinct MI300X, peak bfloat16"),
    (r"\bMI300A\b", 981e12, "AMD Instinct MI300A, peak bfloat16"),
)
"""Patterns of torch's device names; dense 16-bit operations a second and the line of the data sheet they are
from. A product line (A100, 40 or 80 GB, PCIe or SXM) stands once where its cards are rated alike."""


def peak_rate(device: str) -> tuple[float, str] | None:
    """Return a device's dense 16-bit operations a second and their source; None for a device not listed."""
    return next(((rate, source) for name, rate, source in PEAKS if re.search(name, device)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a model multiplies by."""

    block_weights: int
    """Weights of all linear layers of all blocks."""
    head_weights: int
    """Words times hidden size."""
    attention: int
    """Layers times query heads times head size."""

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Read them off a Gemma's configuration."""
        queries, keys = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        block = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
        return cls(
            block_weights=config.num_hidden_layers * block,
            head_weights=config.vocab_size * config.hidden_size,
            attention=config.num_hidden_layers * queries,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What the rows of a run ask for, averaged over its tokens."""

    learned: float
    """Share of the tokens that are learned."""
    seen: float
    """Tokens that a token attends to, itself included: those before it in its own row."""


def operations(
    sizes: Sizes, rows: Rows, *, adapter_weights: int | None, recomputed: bool
) -> tuple[float, float]:
    """Count the operations of a training step for each of its tokens; an addition is one, a product another.

    Forward: 2 for each weight of a block and of the adapters, 4 for each attended token and each of a
    layer's query dimensions (scores and sums), 2 for each weight of the head where a token is learned.
    Backward, the gradients of the inputs: as much again, twice for attention. The gradients of the weights:
    as much again for all that are trained, that is blocks and head, or adapters alone. So a full fine-tune
    takes the 6 N of Chowdhery et al. 2022 (PaLM, appendix B), and one with adapters 4 N and 6 for each
    weight of theirs. A causal mask is counted as half a square, unlike there. Not counted: norms, softmax,
    rotation, activation functions, dequantising, the optimizer, what a kernel computes beyond the mask or for
    tokens that are not learned.

    Args:
        sizes: The model's.
        rows: The run's.
        adapter_weights: Weights of all adapters; None where every weight is trained.
        recomputed: Whether the blocks run forward a second time (gradient checkpointing).

    Returns:
        What the model asks for, and what the device does: that and what is recomputed (model and hardware
        operations of Korthikanti et al. 2022, section 5).
    """
    adapters = adapter_weights or 0
    attention = 4 * sizes.attention * rows.seen
    blocks = 2 * (sizes.block_weights + adapters) + attention
    head = 2 * sizes.head_weights * rows.learned
    gradients_of_inputs = 2 * (sizes.block_weights + adapters) + 2 * attention + head
    gradients_of_weights = 2 * adapters if adapter_weights else 2 * sizes.block_weights + head
    model = blocks + head + gradients_of_inputs + gradients_of_weights
    return model, model + (blocks if recomputed else 0)
