"""Which modules an adapter's settings name, matched as PEFT 0.21 matches them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"


def is_target(values: Mapping[str, Any], module: str) -> bool:
    """Say whether a linear module or an embedding is one of those that were given a LoRA.

    Args:
        values: The content of adapter_config.json.
        module: The module's name in the model.
    """
    if _ends_or_matches(values.get("exclude_modules"), module):
        return False
    if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in _names(values, "modules_to_save")):
        return False
    names = values.get("target_modules")
    if isinstance(names, str) and names.lower() == "all-linear":
        return module not in (EMBEDDING, HEAD)
    if isinstance(names, str) or module in (names or ()):
        return _ends_or_matches(names, module)
    return _ends_or_matches(names, module) and _layer_chosen(values, module)


def is_saved(values: Mapping[str, Any], module: str) -> bool:
    """Say whether a module was trained whole, by its own name or by that of a module around it.

    PEFT compares the ends of names letter by letter: `norm` names `input_layernorm` too.

    Raises:
        ValueError: Both are named, which PEFT saves in a form that it cannot load.
    """
    names = tuple(_names(values, "modules_to_save"))
    saved = [around for around in _with_parents(module) if around.endswith(names)]
    if len(saved) > 1:
        raise ValueError(f"modules_to_save names {saved[0]} and, inside it, {saved[1]}")
    return bool(saved)


def token_rows(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the rows that were trained one by one, for each end of a module's name.

    Raises:
        TypeError: The setting is neither a list of numbers nor such lists by name.
    """
    chosen = values.get("trainable_token_indices") or {}
    if isinstance(chosen, list):
        chosen = {EMBEDDING: chosen}
    rows = {str(name): tuple(numbers) for name, numbers in chosen.items()}
    if not all(type(row) is int for numbers in rows.values() for row in numbers):
        raise TypeError("trainable_token_indices holds something else than whole numbers")
    return rows


def _names(values: Mapping[str, Any], key: str) -> list[str]:
    names = values.get(key) or []
    if not isinstance(names, list):
        raise TypeError(f"{key} is no list")
    return [str(name) for name in names]


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _ends_or_matches(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _layer_chosen(values: Mapping[str, Any], module: str) -> bool:
    layers = values.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = values.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        if found:
            return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
    return False
