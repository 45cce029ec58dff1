"""The LoRA matrices of an adapter, matched with the layers of the base that they update."""

from collections.abc import Iterator, Mapping, Set

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter_config import AdapterSettings
from gemma_ft.exporting.merging.adapter_tensors import (
    B_BIAS,
    EMBEDDING_A,
    EMBEDDING_B,
    MAGNITUDE,
    A,
    B,
    check_shape,
)
from gemma_ft.exporting.merging.changes import BiasUpdate, Change, EmbeddingUpdate, LoraUpdate
from gemma_ft.exporting.merging.targets import EMBEDDING, HEAD, is_target
from gemma_ft.exporting.merging.tensor_files import StoredTensor

Parts = Mapping[str, StoredTensor]

_SWITCHES = {MAGNITUDE: "without use_dora", B_BIAS: "without lora_bias"}


def lora_updates(
    found: Mapping[str, Parts], base: Mapping[str, StoredTensor], settings: AdapterSettings
) -> dict[str, Change]:
    """Build the update of each base tensor that a LoRA changes.

    Args:
        found: The matrices of each module.
        base: The base's tensors by name.
        settings: What adapter_config.json says.

    Raises:
        ExportError: The three do not fit together, or no merge could be PEFT's and right.
    """
    _check_tied_targets(base, settings)
    _check_modules(found.keys(), base, settings)
    return {
        name: update
        for module, parts in found.items()
        for name, update in _updates(module, parts, base, settings)
    }


def _check_tied_targets(base: Mapping[str, StoredTensor], settings: AdapterSettings) -> None:
    if f"{HEAD}.weight" in base:
        return
    for module in (EMBEDDING, HEAD):
        if is_target(settings.values, module):
            raise ExportError(
                f"{settings.source}: target_modules names {module}, a weight that embedding and head share "
                "(tied): no single tensor equals both as LoRA trained them. Train it whole "
                "(modules_to_save=[embed_tokens], ensure_weight_tying=True) or by rows "
                "(trainable_token_indices)."
            )


def _check_modules(found: Set[str], base: Mapping[str, StoredTensor], settings: AdapterSettings) -> None:
    matrices = {
        name.removesuffix(".weight")
        for name, tensor in base.items()
        if len(tensor.shape) == 2 and name.endswith(".weight")
    }
    named = {module for module in matrices if is_target(settings.values, module)}
    if foreign := found - matrices:
        raise ExportError(
            f"{settings.source}: the adapter changes {min(foreign)}, which the base does not have "
            f"({len(foreign)} such of {len(found)}). Export with the base it was trained on."
        )
    if unnamed := found - named:
        raise ExportError(
            f"{settings.source}: the adapter holds {min(unnamed)}, which target_modules does not name "
            f"({len(unnamed)} such of {len(found)}). Export the folder as PEFT saved it."
        )
    if missing := named - found:
        raise ExportError(
            f"{settings.source}: target_modules names {min(missing)}, which the adapter lacks "
            f"({len(missing)} such of {len(named)}). Save the adapter again, whole."
        )


def _updates(
    module: str, parts: Parts, base: Mapping[str, StoredTensor], settings: AdapterSettings
) -> Iterator[tuple[str, Change]]:
    weight = base[f"{module}.weight"]
    if module == EMBEDDING:
        yield weight.name, _embedding_update(parts, weight, settings)
        return
    yield weight.name, _linear_update(module, parts, weight, settings)
    if settings.lora_bias:
        bias = base.get(f"{module}.bias")
        if bias is None:
            raise ExportError(
                f"{settings.source}: lora_bias=True trained a bias for {module}, which has none in the base, "
                "so no merge can hold it. Train without lora_bias."
            )
        check_shape(parts[B_BIAS], bias.shape, bias)
        yield bias.name, BiasUpdate(parts[B_BIAS], settings.scale(module))


def _linear_update(module: str, parts: Parts, weight: StoredTensor, settings: AdapterSettings) -> LoraUpdate:
    needed = {A, B}
    if settings.dora:
        needed.add(MAGNITUDE)
    if settings.lora_bias:
        needed.add(B_BIAS)
    rank = _check_parts(module, parts, needed, A, settings)
    outputs, inputs = weight.shape
    check_shape(parts[A], (rank, inputs), weight)
    check_shape(parts[B], (outputs, rank), weight)
    if settings.dora:
        check_shape(parts[MAGNITUDE], (outputs,), weight)
    return LoraUpdate(parts[A], parts[B], parts.get(MAGNITUDE), settings.scale(module))


def _embedding_update(parts: Parts, weight: StoredTensor, settings: AdapterSettings) -> EmbeddingUpdate:
    if settings.dora:
        raise ExportError(
            f"{settings.source}: use_dora=True scales the columns of {EMBEDDING}, which export cannot merge. "
            "Merge this adapter with PEFT."
        )
    rank = _check_parts(EMBEDDING, parts, {EMBEDDING_A, EMBEDDING_B}, EMBEDDING_A, settings)
    words, width = weight.shape
    check_shape(parts[EMBEDDING_A], (rank, words), weight)
    check_shape(parts[EMBEDDING_B], (width, rank), weight)
    return EmbeddingUpdate(parts[EMBEDDING_A], parts[EMBEDDING_B], settings.scale(EMBEDDING))


def _check_parts(module: str, parts: Parts, needed: set[str], first: str, settings: AdapterSettings) -> int:
    """Check that a module has exactly the parts it needs, and return its rank."""
    for part in sorted(needed ^ parts.keys()):
        kind = "lacks" if part in needed else f"has, {_SWITCHES.get(part, 'out of place')},"
        raise ExportError(f"{settings.source}: the adapter {kind} {module}.{part}. Save it again with PEFT.")
    rank = settings.rank(module)
    if parts[first].shape[:1] != (rank,):
        raise ExportError(
            f"{settings.source} says rank {rank} for {module}, but its {first.removesuffix('.weight')} has "
            f"shape {parts[first].shape}. Export the folder as PEFT saved it."
        )
    return rank
