"""One pass of each model over the rows: the last hidden states, in float32 or bf16."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.certificate.measures import Side
from gemma_ft.exporting.certificate.products import bf16_product, int8_product
from gemma_ft.exporting.certificate.rows import UNLEARNED, CertificateRow
from gemma_ft.exporting.certificate.streaming import HEAD, RowLayer, build_empty, stream
from gemma_ft.exporting.certificate.trained_model import read_trained_adapter
from gemma_ft.exporting.certificate.weights import ModelWeights
from gemma_ft.exporting.merging.adapter import ADAPTER_CONFIG
from gemma_ft.exporting.merging.storage import TrainedStorage, is_quantised
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, StoredTensor, read_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("gemma_ft")


@dataclass(frozen=True, slots=True)
class Streamed:
    """A model that reads its weights when it runs."""

    model: "PreTrainedModel"
    head: RowLayer
    weights: ModelWeights

    def side(self, states_TD: torch.Tensor) -> Side:
        """Return the model's answer from its hidden states."""
        return Side(self.head, states_TD, getattr(self.model.config, "final_logit_softcapping", None))


def _own_tensors(folder: Path, model: "PreTrainedModel") -> dict[str, StoredTensor]:
    """Read where a checkpoint's tensors are, without the copy of a head that is the embedding itself."""
    tensors = read_checkpoint(folder)
    if model.config.tie_word_embeddings:
        tensors.pop(HEAD, None)
    return tensors


def open_folder(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    rounded_to: Mapping[str, torch.dtype] | None = None,
) -> Streamed:
    """Open a whole checkpoint: the exported folder, or that of a full fine-tune.

    Args:
        folder: The checkpoint.
        dtype: The number format to compute in.
        rounded_to: Number formats to round tensors to first.
    """
    model = build_empty(folder, dtype)
    weights = ModelWeights(_own_tensors(folder, model), dtype)
    weights.rounded_to = rounded_to or {}
    product = bf16_product() if dtype is torch.bfloat16 else None
    return Streamed(model, stream(model, weights, product=lambda name: product), weights)


def open_trained(
    base: Path,
    trained: Path,
    storage: TrainedStorage | None,
    *,
    int8_arithmetic: bool = False,
    rounded: bool = False,
) -> Streamed:
    """Open the trained model, unmerged.

    Args:
        base: The base's folder.
        trained: The adapter's folder, or that of a full fine-tune.
        storage: How the base is to be held.
        int8_arithmetic: Whether the products of int8 weights quantise their inputs too, as training does.
        rounded: Merge by PEFT's own code after all, layer by layer, and round to the formats that the base
            is stored in: what storing the trained model costs.
    """
    if not (trained / ADAPTER_CONFIG).is_file():
        return open_folder(trained, rounded_to=_stored_formats(read_checkpoint(base)) if rounded else None)
    model = build_empty(base, torch.float32)
    tensors = _own_tensors(base, model)
    adapter = read_trained_adapter(trained, tensors, tied=HEAD not in tensors)
    weights = adapter.weights(tensors, torch.float32, storage)
    layers = adapter.attach(model, torch.float32)
    stored = _stored_formats(tensors)
    merged_to = {f"{layer}.weight": stored[f"{layer}.weight"] for layer in layers} if rounded else {}
    if rounded:
        weights.rounded_to = {name: dtype for name, dtype in stored.items() if name not in merged_to}
    model.eval()  # PEFT's layers come in training mode, with their dropout
    int8 = int8_arithmetic and storage is not None and storage.method is QuantizationMethod.int8
    head = stream(
        model,
        weights,
        layers,
        lambda name: int8_product if int8 and is_quantised(name, storage) else None,
        merged_to,
    )
    return Streamed(model, head, weights)


def _stored_formats(tensors: Mapping[str, StoredTensor]) -> dict[str, torch.dtype]:
    return {name: getattr(torch, FLOAT_NAMES[tensor.dtype]) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side, padded at their right; T counts the tokens that something is asked of."""

    ids: torch.Tensor
    mask: torch.Tensor
    asked: torch.Tensor
    """Where a next token is known."""
    targets: torch.Tensor
    learned: torch.Tensor

    def states(self, streamed: Streamed) -> torch.Tensor:
        """Run a model and return its last hidden states where they are asked for, shape (T, D)."""
        out = streamed.model.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False)
        streamed.weights.release()
        states_TD: torch.Tensor = out.last_hidden_state[self.asked]
        return states_TD


def build_batch(rows: Sequence[CertificateRow]) -> Batch:
    """Lay rows side by side."""
    ids_BL = _padded([row.input_ids for row in rows], 0)
    labels_BL = _padded([row.labels for row in rows], UNLEARNED)
    mask_BL = _padded([[1] * len(row.input_ids) for row in rows], 0)
    asked_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
    asked_BL[:, :-1] = mask_BL[:, 1:].bool()
    next_BL = torch.roll(ids_BL, -1, dims=1)
    learned_BL = torch.roll(labels_BL, -1, dims=1) != UNLEARNED
    return Batch(ids_BL, mask_BL, asked_BL, next_BL[asked_BL], learned_BL[asked_BL])


def _padded(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, values))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values])
