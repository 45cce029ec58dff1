"""Every key of a run: its type, whether a value fits it, and the key that someone meant."""

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from gemma_ft.config.catalog import GROUPS, RECIPE
from gemma_ft.config.rows import MixturePart
from gemma_ft.config.schema import RunConfig
from gemma_ft.config.synonyms import INSTEAD, RENAMED

EXTRA = "trainer.extra"
"""An open key: whatever stands below it goes to SFTConfig."""

MIXTURE = "dataset.mixture"
"""An open key: below it stand names, and below each name the keys of a source."""
_MIXTURE_KEY = re.compile(rf"{re.escape(MIXTURE)}\.(?P<name>[A-Za-z_]\w*)\.(?P<key>[\w.]+)")

_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@cache
def key_types() -> dict[str, Any]:
    """Return the type of each key that holds a value, by its full name."""
    return dict(_walk(RunConfig, ""))


def key_type(key: str) -> Any:
    """Return the type of a key, those of a mixture's sources included; None: there is no such key."""
    inner = _MIXTURE_KEY.fullmatch(key)
    return _part_types().get(inner["key"]) if inner else key_types().get(key)


@cache
def _part_types() -> dict[str, Any]:
    return dict(_walk(MixturePart, ""))


def mixture_keys(value: Mapping[Any, Any], key: str = MIXTURE) -> Iterator[tuple[str, Any]]:
    """List the keys of a mixture that is written as one mapping, with their values."""
    for name, below in value.items():
        if isinstance(below, dict) and is_section(f"{key}.{name}"):
            yield from mixture_keys(below, f"{key}.{name}")
        else:
            yield f"{key}.{name}", below


def is_section(key: str) -> bool:
    """Tell whether keys stand below a key."""
    parts = key.split(".")
    if key.startswith(MIXTURE + "."):
        below = ".".join(parts[3:])
        return len(parts) == 3 or any(name.startswith(below + ".") for name in _part_types())
    return key == MIXTURE or any(name.startswith(key + ".") for name in key_types())


def _walk(section: type, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, annotation in get_type_hints(section).items():
        if is_dataclass(annotation):
            yield from _walk(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, annotation


def is_optional(annotation: Any) -> bool:
    """Tell whether a key may be null."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def plain_type(annotation: Any) -> Any:
    """Return the type of a key without its null."""
    return (
        next(a for a in get_args(annotation) if a is not type(None))
        if is_optional(annotation)
        else annotation
    )


def type_words(annotation: Any) -> str:
    """Say in words what a key takes."""
    kind = plain_type(annotation)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        words = "|".join(kind)
    elif get_origin(kind) is tuple:
        words = "list"
    elif get_origin(kind) is dict:
        words = "mapping"
    else:
        words = {str: "text", int: "integer", float: "number", bool: "true|false"}[kind]
    return f"{words} or null" if is_optional(annotation) else words


def fit(key: str, value: Any) -> Any:
    """Bring a value into the form its key takes.

    Raises:
        ValueError: It does not fit; the message goes on from `key=value`.
    """
    annotation = key_type(key)
    kind = plain_type(annotation)
    if isinstance(value, str) and "${" in value:
        return value  # resolved later, together with the other keys
    if value is None or (is_optional(annotation) and str(value).lower() == "none"):
        if is_optional(annotation):
            return None
        raise ValueError(f"cannot be switched off. Give {_wanted(kind)}, or leave it out for the default.")
    try:
        return _converted(kind, value)
    except (KeyError, OverflowError, TypeError, ValueError):
        close = difflib.get_close_matches(str(value), list(kind), 1) if _is_choice(kind) else []
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be {_wanted(kind)}.{hint}") from None


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def _wanted(kind: Any) -> str:
    if _is_choice(kind):
        return "one of " + ", ".join(kind)
    if get_origin(kind) is tuple:
        return "a list like [q_proj,v_proj]"
    if get_origin(kind) is dict:
        return "a mapping like {adam_beta2: 0.95}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _converted(kind: Any, value: Any) -> Any:
    if _is_choice(kind):
        return kind(value).value
    if get_origin(kind) is tuple:
        return [
            _converted(str, item) for item in ([value] if isinstance(value, str) else _of(value, list, tuple))
        ]
    if get_origin(kind) is dict:
        return _of(value, dict)
    if kind is bool:
        return _BOOLEANS[str(value).lower()]
    if kind is str:
        return value if isinstance(value, str) else str(_of(value, int, float))
    if isinstance(value, bool):
        raise TypeError(value)
    number = float(_of(value, int, float, str))
    if kind is float:
        return number
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _of(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(value)
    return value


def advice(key: str, value: str | None = None) -> str:
    """Say what to do about a key that does not exist.

    Args:
        key: The key as it was typed.
        value: What was typed after `=`; None where no line to type is wanted, as in a file.
    """
    if key == MIXTURE or key.startswith(MIXTURE + "."):
        return _mixture_advice(key)
    leaf = key.rsplit(".", 1)[-1].rsplit("/", 1)[-1].lower().replace("-", "_").lstrip("-+~")
    if leaf in INSTEAD and not _same_leaf(leaf):
        return INSTEAD[leaf]
    renamed = [RENAMED[leaf]] if leaf in RENAMED else []
    found = (renamed if leaf == key else []) or _same_leaf(leaf) or renamed or _nearest(key, leaf)
    if not found:
        return "`python -m gemma_ft train --help` lists every key."
    typed = [name if value is None else f"{name}={value}" for name in found]
    verb = "Write" if value is None else "Type"
    return f"{verb} {' or '.join(typed)}."


def _mixture_advice(key: str) -> str:
    name, _, below = key.removeprefix(MIXTURE).lstrip(".").partition(".")
    if name and not re.fullmatch(r"[A-Za-z_]\w*", name):
        return f"Name the source with letters, digits and _, e.g. {re.sub(r'[^0-9A-Za-z_]+', '_', name)}."
    near = difflib.get_close_matches(below, list(_part_types()), 1)
    if near:
        return f"Write {MIXTURE}.{name}.{near[0]}."
    return f"Name a source and its key, like {MIXTURE}.mine.path or {MIXTURE}.mine.weight."


def _same_leaf(leaf: str) -> list[str]:
    return [key for key in key_types() if key.rsplit(".", 1)[-1] == leaf]


def _nearest(key: str, leaf: str) -> list[str]:
    names = [*key_types(), *GROUPS, RECIPE] if "." not in key else list(key_types())
    close = difflib.get_close_matches(key, names, 1, cutoff=0.65)
    if close:
        return close
    leaves = {name.rsplit(".", 1)[-1]: name for name in names}
    near = difflib.get_close_matches(leaf, [*leaves, *RENAMED], 1, cutoff=0.65)
    return [leaves.get(near[0]) or RENAMED[near[0]]] if near else []
