"""What becomes of a tensor of the base: an adapter's update, new rows, or another tensor in its place."""

from dataclasses import dataclass

from gemma_ft.exporting.merging.tensor_files import StoredTensor


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """What an adapter adds to one linear layer: scale * B @ A, and with DoRA a length for each row."""

    a: StoredTensor
    """Shape (rank, inputs)."""
    b: StoredTensor
    """Shape (outputs, rank)."""
    magnitude: StoredTensor | None
    """Shape (outputs,); None without DoRA."""
    scale: float


@dataclass(frozen=True, slots=True)
class EmbeddingUpdate:
    """What an adapter adds to an embedding of its own: scale * (B @ A), transposed.

    PEFT rounds it to the base's number format before it adds it, which it does not do for linear layers.
    """

    a: StoredTensor
    """Shape (rank, words)."""
    b: StoredTensor
    """Shape (width, rank)."""
    scale: float


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows of an embedding that were trained one by one; the others stay the base's."""

    rows: tuple[int, ...]
    """Their numbers, each once, in the order of `values`."""
    values: StoredTensor
    """Shape (rows, width)."""


@dataclass(frozen=True, slots=True)
class BiasUpdate:
    """What an adapter with `lora_bias` adds to the bias of a linear layer: scale * values."""

    values: StoredTensor
    """Shape (outputs,)."""
    scale: float


Change = LoraUpdate | EmbeddingUpdate | BiasUpdate | NewRows | StoredTensor
"""A stored tensor takes the base's place whole: a full fine-tune's, or a module saved beside an adapter."""
