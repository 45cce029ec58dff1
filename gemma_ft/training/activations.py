"""What a forward pass leaves for the backward pass, and whether it is worth computing twice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import Attention, RunConfig
from gemma_ft.data.facts import numbers
from gemma_ft.modeling.checkpoint import Checkpoint
from gemma_ft.modeling.precision import Precision
from gemma_ft.training.layout import Layout

if TYPE_CHECKING:
    import datasets

_SPARED_BYTES = 128 * 2**20
"""Activations that every machine has room for: computing them twice costs time for nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a model is made of, in numbers."""

    hidden: int
    inner: int
    heads: int
    layers: int
    vocabulary: int

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Sizes":
        """Read them from config.json; what it does not say is a 2B's."""
        return cls(
            hidden=found.get("hidden_size", 2048),
            inner=found.get("intermediate_size", 16384),
            heads=found.get("num_attention_heads", 8) * found.get("head_dim", 256),
            layers=found.get("num_hidden_layers", 18),
            vocabulary=found.get("vocab_size", 256000),
        )

    @property
    def linear(self) -> float:
        """Weights of all blocks; of the attention, keys and values count as much as queries."""
        return self.layers * (4.0 * self.hidden * self.heads + 3.0 * self.hidden * self.inner)

    @property
    def weights(self) -> float:
        """Weights in all, those of the embeddings once."""
        return self.linear + self.vocabulary * self.hidden

    def activations(self, tokens: float, *, checkpointed: bool, item_bytes: int = 2) -> float:
        """Bytes that a forward pass of these tokens leaves for the backward pass.

        A block keeps its input, both norms and sums, queries to output, and four vectors of the inner size;
        with checkpointing only its input, and one block is whole at a time. Of the logits only those of some
        tokens exist at one time, however many there are.
        """
        block = item_bytes * (4 * self.hidden + 4 * self.heads + 4 * self.inner)
        kept = item_bytes * self.hidden * self.layers + block if checkpointed else block * self.layers
        return tokens * kept


def settle_checkpointing(
    config: RunConfig, layout: Layout, checkpoint: Checkpoint, precision: Precision, rows: "datasets.Dataset"
) -> RunConfig:
    """Say whether activations are recomputed, where the configuration leaves it open.

    They are, unless those of the largest micro-batch are few. It follows from the run alone, so that a resume
    finds the same.

    Args:
        config: The run.
        layout: Its processes.
        checkpoint: Its model.
        precision: Its number format and attention.
        rows: Those it trains on, one by one, with their `length`.
    """
    trainer = config.trainer
    if trainer.gradient_checkpointing is not None:
        return config
    longest = trainer.max_length if trainer.packing else int(numbers(rows, "length")["length"].max())
    kept = Sizes.read(checkpoint.config).activations(
        trainer.micro_batch_size * longest,
        checkpointed=False,
        item_bytes=precision.torch_dtype.itemsize,
    )
    wanted = (
        kept > _SPARED_BYTES
        or layout.sharded
        or precision.attention is Attention.eager  # which keeps something for each pair of tokens
        or "activation_checkpointing_kwargs" in trainer.extra
    )
    return replace(config, trainer=replace(trainer, gradient_checkpointing=wanted))
