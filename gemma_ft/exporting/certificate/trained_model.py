"""The trained model, unmerged: the base as training held it, and PEFT's own layers on it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.streaming import EMBEDDING, HEAD, Parts
from gemma_ft.exporting.certificate.weights import ModelWeights
from gemma_ft.exporting.merging.adapter_tensors import ADAPTER_FILE
from gemma_ft.exporting.merging.changes import NewRows
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.tensor_files import StoredTensor, load_tensor, read_header

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
_NEW_ROWS = ".token_adapter.trainable_tokens_delta"
_NAME = "default"


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """An adapter's folder, divided into PEFT's layers and what takes the place of the base's tensors."""

    config: "LoraConfig"
    parts: Mapping[str, StoredTensor]
    """Tensors of PEFT's layers, by their names in the model without the adapter's own name."""
    replacing: Mapping[str, StoredTensor]
    new_rows: Mapping[str, NewRows]

    def weights(
        self, base: Mapping[str, StoredTensor], dtype: torch.dtype, storage: TrainedStorage | None
    ) -> ModelWeights:
        """Describe the weights of the base under this adapter."""
        return ModelWeights(
            {**base, **self.replacing},
            dtype,
            storage=storage,
            new_rows=self.new_rows,
            replaced=frozenset(self.replacing),
        )

    def attach(self, model: "PreTrainedModel", dtype: torch.dtype) -> dict[str, Parts]:
        """Put PEFT's layers on an empty model.

        Returns:
            What reads the parameters of each layer, by the layer's name.

        Raises:
            ExportError: The folder's tensors are not those of PEFT's layers.
        """
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weight tying, which the substitution settles
            if self.parts:
                inject_adapter_in_model(self.config, model, adapter_name=_NAME, low_cpu_mem_usage=True)
        adapters: dict[str, Parts] = {}
        left = dict(self.parts)
        for name, module in model.named_modules():
            if isinstance(module, BaseTunerLayer):
                stored = {
                    own: _take(left, f"{name}.{own}")
                    for own, _ in module.named_parameters()
                    if not own.startswith("base_layer.")
                }
                adapters[name] = partial(_load, stored, dtype)
                _multiply_small(module)
        if left:
            raise ExportError(
                f"export.certificate=full does not know what the adapter's {min(left)} is for. "
                "Export with export.certificate=none, and compare the two models yourself."
            )
        return adapters


def _take(left: dict[str, StoredTensor], parameter: str) -> StoredTensor:
    name = parameter.replace(f".{_NAME}", "")
    for spelling in (name, name.removesuffix(".weight")):  # PEFT cuts the magnitudes' names
        if spelling in left:
            return left.pop(spelling)
    raise ExportError(
        f"export.certificate=full misses {name} in the adapter. Save the adapter again with PEFT."
    )


def _load(stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: load_tensor(tensor).to(dtype) for name, tensor in stored.items()}


def _multiply_small(layer: Any) -> None:
    """Keep DoRA from multiplying an identity matrix through the adapter: 2.4 GB for Gemma 7B's down_proj.

    PEFT does so for the sake of FSDP; B @ A is the same product.
    """
    for dora in layer.lora_magnitude_vector.values():
        dora.get_lora_weight = _b_times_a


def _b_times_a(lora_A: Any, lora_B: Any, adapter_name: str | None = None) -> torch.Tensor:
    product: torch.Tensor = lora_B.weight @ lora_A.weight
    return product


def read_trained_adapter(folder: Path, base: Mapping[str, StoredTensor], *, tied: bool) -> TrainedAdapter:
    """Read what an adapter's folder holds, from PEFT's names alone.

    Args:
        folder: The adapter's folder.
        base: The base's tensors.
        tied: Whether the base's head is its embedding.
    """
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(folder))
    parts: dict[str, StoredTensor] = {}
    replacing: dict[str, StoredTensor] = {}
    new_rows: dict[str, NewRows] = {}
    for stored_name, stored in read_header(folder / ADAPTER_FILE).items():
        name = stored_name.removeprefix(_PREFIX).replace(f".{_NAME}", "")
        if "lora_" in name:
            parts[name] = stored
        elif name.endswith(_NEW_ROWS):
            module = name.removesuffix(_NEW_ROWS)
            new_rows[f"{module}.weight"] = NewRows(_rows_of(config, module), stored)
        else:
            replacing[name.replace(".base_layer.", ".")] = stored
    if tied and HEAD not in replacing and (EMBEDDING in replacing or HEAD in new_rows):
        replacing[HEAD] = base[EMBEDDING]  # what is not trained with the embedding stays the base's
    config.modules_to_save = config.trainable_token_indices = None
    config.init_lora_weights = False
    return TrainedAdapter(config, parts, replacing, new_rows)


def _rows_of(config: "LoraConfig", module: str) -> tuple[int, ...]:
    """Return which rows of a module were trained; a list without a module's name is the embedding's."""
    indices = config.trainable_token_indices
    if not isinstance(indices, dict):
        return tuple(indices or ())
    for name, rows in indices.items():
        if module == name or module.endswith(f".{name}"):
            return tuple(rows)
    raise ExportError(
        f"export.certificate=full finds trained rows of {module}, which trainable_token_indices does not "
        "name. Export the folder as PEFT saved it."
    )
