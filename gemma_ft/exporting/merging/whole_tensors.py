"""What takes the place of a base's tensor whole: modules trained beside LoRA, and biases."""

from collections.abc import Iterator, Mapping

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter_config import AdapterSettings
from gemma_ft.exporting.merging.adapter_tensors import AdapterTensors, check_shape, same_values
from gemma_ft.exporting.merging.targets import EMBEDDING, HEAD, is_saved, is_target
from gemma_ft.exporting.merging.tensor_files import StoredTensor, same_bytes

_EMBEDDING_WEIGHT, _HEAD_WEIGHT = f"{EMBEDDING}.weight", f"{HEAD}.weight"


def whole_tensors(
    found: AdapterTensors, base: Mapping[str, StoredTensor], settings: AdapterSettings
) -> dict[str, StoredTensor]:
    """Find the saved modules and the trained biases of an adapter, by the name of the base's tensor.

    Raises:
        ExportError: One is missing or does not fit, or the file holds others that are not the base's own.
    """
    trained: dict[str, StoredTensor] = {}
    for name, place in _expected(base, settings):
        stored = found.whole.get((name, place))
        if stored is None:
            raise _lacks(name, settings)
        trained[name] = stored
    if _tied(base) and any(is_saved(settings.values, module) for module in (EMBEDDING, HEAD)):
        trained[_EMBEDDING_WEIGHT] = _tied_weight(found, settings)
    for name, stored in trained.items():
        check_shape(stored, base[name].shape, base[name])
    _check_copies(found, base, trained)
    return trained


def _tied(base: Mapping[str, StoredTensor]) -> bool:
    return _HEAD_WEIGHT not in base and _EMBEDDING_WEIGHT in base


def _expected(base: Mapping[str, StoredTensor], settings: AdapterSettings) -> Iterator[tuple[str, str]]:
    """Iterate over what was trained whole, and the place in which PEFT keeps it; a tied head aside."""
    for name in base:
        module, _, leaf = name.rpartition(".")
        if is_saved(settings.values, module):
            yield name, ""
        elif leaf == "bias" and settings.bias != "none":
            if is_target(settings.values, module):
                yield name, "base_layer"
            elif settings.bias == "all":
                yield name, ""


def _tied_weight(found: AdapterTensors, settings: AdapterSettings) -> StoredTensor:
    """Return the one tensor that embedding and head were trained as."""
    embedding, head = (found.whole.get((name, "")) for name in (_EMBEDDING_WEIGHT, _HEAD_WEIGHT))
    if embedding is None and head is None:
        raise _lacks(_EMBEDDING_WEIGHT, settings)
    if embedding is None or head is None or not same_bytes(embedding, head):
        trained = "the head" if embedding is None else "the embedding" if head is None else "the two apart"
        raise ExportError(
            f"{settings.source}: modules_to_save={settings.values['modules_to_save']} trained {trained}, "
            "though embedding and head share one weight (tied); the result would need an lm_head.weight, "
            "which vLLM and llama.cpp refuse. Train both as one: modules_to_save=[embed_tokens] with "
            "ensure_weight_tying=True."
        )
    return embedding


def _check_copies(
    found: AdapterTensors, base: Mapping[str, StoredTensor], trained: Mapping[str, StoredTensor]
) -> None:
    """Check that all else in the file is what the base has too: PEFT saves embeddings beside their LoRA."""
    for (name, place), stored in found.whole.items():
        home = _EMBEDDING_WEIGHT if name == _HEAD_WEIGHT and _tied(base) else name
        if home not in base:
            raise ExportError(
                f"{stored.path}: {stored.name} is nothing that the base has. "
                "Export with the base it was trained on."
            )
        is_copy_of_base = place in ("base_layer", "token_adapter.base_layer", "original_module")
        original = base[home] if is_copy_of_base else trained.get(home, base[home])
        if stored is not trained.get(home) and not same_values(stored, original):
            raise ExportError(
                f"{stored.path}: {stored.name} differs from the base's, and nothing in adapter_config.json "
                "says that it was trained: another base, another number format, or words were added. "
                "Export with the base it was trained on."
            )


def _lacks(name: str, settings: AdapterSettings) -> ExportError:
    return ExportError(
        f"{settings.source} says that {name} was trained, but the adapter lacks it. "
        "Save the adapter again, whole."
    )
