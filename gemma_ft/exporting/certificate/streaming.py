"""A model of transformers that is never in memory whole: its layers read their weights when they run.

The arithmetic is transformers' and PEFT's own. A module built on the meta device gets the rows that it needs
right before its own `forward`, and loses them after it. Matrices run a block of output rows at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.weights import ModelWeights, row_blocks
from gemma_ft.exporting.heap import trim_heap
from gemma_ft.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Parts = Callable[[], Mapping[str, torch.Tensor]]
"""Reads the adapter's parameters of one of PEFT's layers, by their names in it."""
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Input times transposed weight, plus bias: what a linear layer computes."""


class RowLayer:
    """A linear layer, with its adapter if it has one, run a block of output rows at a time."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        weights: ModelWeights,
        adapter: Parts | None = None,
        product: Product | None = None,
        merged_to: torch.dtype | None = None,
    ) -> None:
        """Take a module over.

        Args:
            module: A linear layer on the meta device, or PEFT's layer around one.
            name: The matrix, by its name in `weights`.
            weights: Where the matrix is read.
            adapter: Reads the other parameters of PEFT's layer.
            product: Takes the place of the base layer's own product.
            merged_to: Merge by PEFT's own code, and round to this number format, before running.
        """
        self._module: Any = module
        self._merged_to = merged_to
        self._base = base_of(module)
        if product is not None:
            compute = product
            self._base.forward = lambda x: compute(x, self._base.weight, self._base.bias)
        self._name = name
        self._weights = weights
        self._adapter = adapter
        self._forward: Callable[..., torch.Tensor] = module.forward
        module.forward = self.run  # type: ignore[method-assign]

    def run(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the layer's whole output."""
        out: torch.Tensor | None = None
        for first, last, part in self.parts(x, *args, **kwargs):
            if out is None:
                rows = self._weights.tensors[self._name].shape[0]
                if last == rows:
                    return part
                out = part.new_empty(*part.shape[:-1], rows)
            out[..., first:last] = part
        assert out is not None
        return out

    def parts(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield the output block by block: first row, last row (excluded) and the values."""
        adapter = self._adapter() if self._adapter else {}
        bias = self._name.removesuffix("weight") + "bias"
        bias_O = self._weights.whole(bias) if self._base.bias is not None else None
        for first, last in row_blocks(self._weights.tensors[self._name].shape):
            set_parameter(self._base, "weight", self._weights.rows(self._name, first, last))
            if bias_O is not None:
                set_parameter(self._base, "bias", bias_O[first:last])
            for name, value in adapter.items():
                owner, _, leaf = name.rpartition(".")
                sliced = value if "lora_A." in name else value[first:last]
                set_parameter(self._module.get_submodule(owner), leaf, sliced)
            if self._merged_to is not None:
                self._merge(self._merged_to)
            yield first, last, self._forward(x, *args, **kwargs)
            if self._merged_to is not None:
                self._module.merged_adapters.clear()
        drop_parameters(self._module)

    def _merge(self, stored: torch.dtype) -> None:
        weight_RI = self._base.weight.clone()  # what was read may be a view of what is read again
        set_parameter(self._base, "weight", weight_RI)
        self._module.merge()
        set_parameter(self._base, "weight", self._base.weight.to(stored).to(weight_RI.dtype))


class RowEmbedding:
    """An embedding that holds the rows of the ids it is asked for."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        weights: ModelWeights,
        adapter: Parts | None = None,
    ) -> None:
        """Take a module over; the arguments are those of `RowLayer`."""
        self._module = module
        self._base = base_of(module)
        self._base.padding_idx = None  # an id before ours stand for others
        self._name = name
        self._weights = weights
        self._adapter = adapter
        self._forward: Callable[..., torch.Tensor] = module.forward
        module.forward = self.run  # type: ignore[method-assign]

    def run(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look the ids up."""
        ids, places = torch.unique(input_ids, return_inverse=True)
        set_parameter(self._base, "weight", self._weights.picked(self._name, ids.tolist()))
        for name, value in (self._adapter() if self._adapter else {}).items():
            owner, _, leaf = name.rpartition(".")
            picked = value[:, ids] if "lora_embedding_A" in name else value
            set_parameter(self._module.get_submodule(owner), leaf, picked)
        found_BLD = self._forward(places)
        drop_parameters(self._module)
        return found_BLD


def base_of(module: Any) -> Any:
    """Return what is inside one of PEFT's layers, or the module itself."""
    return getattr(module, "base_layer", module)


def set_parameter(owner: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor in a parameter's place."""
    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


def drop_parameters(module: nn.Module) -> None:
    """Put a module back on the meta device, so that nothing holds on to what it was given."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            set_parameter(part, name, torch.empty_like(value, device="meta"))


def build_empty(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Build the model of a folder's config.json on the meta device, ready to run but for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    attention = next(
        (family.attention for family in FAMILIES if family.model_type == config.model_type), ("eager",)
    )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa" if "sdpa" in attention else "eager"
        )
    model.eval()
    _compute_buffers(model)
    return model


def _compute_buffers(model: "PreTrainedModel") -> None:
    """Compute what no checkpoint holds, such as rotary frequencies, as transformers does after loading."""
    for module in model.modules():
        missing = [name for name, value in module.named_buffers(recurse=False) if value.is_meta]
        for name in missing:
            buffer = torch.full_like(module.get_buffer(name), torch.nan, device="cpu")
            setattr(module, name, buffer)
        if missing:
            model._init_weights(module)
        for name in missing:
            if not torch.isfinite(module.get_buffer(name)).all():
                raise ExportError(
                    f"export.certificate=full cannot compute {name} of {type(module).__name__}. "
                    "Use transformers 5.23, or export with export.certificate=none."
                )


def stream(
    model: "PreTrainedModel",
    weights: ModelWeights,
    adapters: Mapping[str, Parts] | None = None,
    product: Callable[[str], Product | None] = lambda name: None,
    merged_to: Mapping[str, torch.dtype] | None = None,
) -> RowLayer:
    """Let each layer of an empty model read its own weights, and return its head.

    Args:
        model: What `build_empty` gave, with PEFT's layers in it if there is an adapter.
        weights: The tensors of the model, by its own names.
        adapters: For each of PEFT's layers, by its name, what reads its parameters.
        product: What takes the place of a matrix's product, by the matrix's name.
        merged_to: Number formats to merge layers of PEFT's into, by the matrix's name; others stay unmerged.

    Raises:
        ExportError: The tensors are not those of the model.
    """
    adapters = adapters or {}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    _check_names(model, weights, tied)
    head: RowLayer | None = None
    for name, module in list(model.named_modules()):
        if _within(name, adapters):
            continue
        kind = base_of(module)
        tensor = f"{name}.weight"
        if isinstance(kind, nn.Embedding):
            RowEmbedding(module, tensor, weights, adapters.get(name))
        elif isinstance(kind, nn.Linear):
            tensor = EMBEDDING if tensor == HEAD and HEAD not in weights.tensors else tensor
            stored = (merged_to or {}).get(tensor)
            layer = RowLayer(module, tensor, weights, adapters.get(name), product(tensor), stored)
            head = layer if name == "lm_head" else head
        else:
            for leaf, _ in list(module.named_parameters(recurse=False)):
                set_parameter(module, leaf, weights.whole(f"{name}.{leaf}"))
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: trim_heap())
    assert head is not None
    return head


def _within(name: str, adapters: Mapping[str, Any]) -> bool:
    """Say whether a module is a part of one of PEFT's layers."""
    return any(name.startswith(f"{layer}.") for layer in adapters)


def _check_names(model: "PreTrainedModel", weights: ModelWeights, tied: bool) -> None:
    own = {
        name.replace(".base_layer.", "."): tuple(parameter.shape)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if "lora_" not in name
    }
    found = {name: stored.shape for name, stored in weights.tensors.items()}
    for name in sorted((own.keys() | found.keys()) - ({HEAD} if tied else set())):
        if own.get(name) != found.get(name):
            raise ExportError(
                f"export.certificate=full finds {name} with shape {found.get(name, 'none')} on disk, and "
                f"{own.get(name, 'none')} in the model of config.json. Export again."
            )
