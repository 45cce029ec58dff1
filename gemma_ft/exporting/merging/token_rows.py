"""Single rows of an embedding or a head that were trained one by one."""

from collections.abc import Mapping

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter_config import AdapterSettings
from gemma_ft.exporting.merging.adapter_tensors import check_shape
from gemma_ft.exporting.merging.changes import NewRows
from gemma_ft.exporting.merging.targets import EMBEDDING, HEAD, token_rows
from gemma_ft.exporting.merging.tensor_files import StoredTensor, same_bytes

_KEY = "trainable_token_indices"


def new_rows(
    found: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor], settings: AdapterSettings
) -> dict[str, NewRows]:
    """Find the rows that an adapter puts in the place of the base's.

    What PEFT stores as `trainable_tokens_delta` are the rows themselves, not differences.

    Args:
        found: The stored rows of each module.
        base: The base's tensors by name.
        settings: What adapter_config.json says.

    Raises:
        ExportError: They do not fit the base or the settings, or only one of two tied weights was trained.
    """
    wanted = _wanted(base, settings)
    stored = dict(found)
    if f"{HEAD}.weight" not in base:
        _untie(wanted, stored, settings)
    for module in sorted(wanted.keys() ^ stored.keys()):
        kind = "lacks" if module in wanted else "has, unlike its settings,"
        raise ExportError(
            f"{settings.source}: the adapter {kind} the rows of {module}. Save it again with PEFT."
        )
    changes = {}
    for module, rows in wanted.items():
        weight = base[f"{module}.weight"]
        _check_rows(module, rows, weight, settings)
        check_shape(stored[module], (len(rows), weight.shape[1]), weight)
        changes[weight.name] = NewRows(rows, stored[module])
    return changes


def _wanted(base: Mapping[str, StoredTensor], settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
    """Return the rows by the full names of their modules, which PEFT finds by the end of the name."""
    modules = [module for module in (EMBEDDING, HEAD) if module == HEAD or f"{module}.weight" in base]
    wanted: dict[str, tuple[int, ...]] = {}
    for end, rows in token_rows(settings.values).items():
        named = [module for module in modules if module.endswith(end)]
        if not named:
            raise ExportError(
                f"{settings.source}: {_KEY} names {end}, but export puts rows into embed_tokens and lm_head "
                "only. Merge this adapter with PEFT."
            )
        for module in named:
            wanted[module] = rows
    return wanted


def _untie(
    wanted: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor], settings: AdapterSettings
) -> None:
    """Leave one of the two entries of a weight that embedding and head share."""
    head = stored.pop(HEAD, None)
    same_rows = wanted.pop(HEAD, wanted.get(EMBEDDING)) == wanted.get(EMBEDDING)
    same_values = head is None or (EMBEDDING in stored and same_bytes(head, stored[EMBEDDING]))
    if not (same_rows and same_values):
        raise ExportError(
            f"{settings.source}: {_KEY}={settings.values.get(_KEY)} trained rows of the head apart, though "
            "embedding and head share one weight (tied). Name the rows of embed_tokens alone; PEFT ties the "
            "head's to them."
        )


def _check_rows(module: str, rows: tuple[int, ...], weight: StoredTensor, settings: AdapterSettings) -> None:
    outside = [row for row in rows if not 0 <= row < weight.shape[0]]
    if outside:
        raise ExportError(
            f"{settings.source}: {_KEY} names row {outside[0]} of {module}, but the base has "
            f"{weight.shape[0]}. Export with the base it was trained on."
        )
    if len(set(rows)) < len(rows):
        raise ExportError(
            f"{settings.source}: {_KEY} names a row of {module} twice, which leaves open what of it counts. "
            "Train each row once."
        )
