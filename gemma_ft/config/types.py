"""The types of a configuration that was built in Python; one that is composed has them already."""

import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any


def find_type_problems(section: Any, prefix: str = "") -> list[str]:
    """List the keys whose value is of another type than the key, each with what to give."""
    return list(_problems(section, prefix))


def _problems(section: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(type(section))
    for item in fields(section):
        value, hint = getattr(section, item.name), hints[item.name]
        if not _fits(value, hint):
            yield f"{prefix}{item.name}={value!r} is of type {type(value).__name__}. Give {_named(hint)}."
        elif is_dataclass(value):
            yield from _problems(value, f"{prefix}{item.name}.")
        elif isinstance(value, dict):
            for name, held in value.items():
                if is_dataclass(held):
                    yield from _problems(held, f"{prefix}{item.name}.{name}.")


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(name, arguments[0]) and _fits(held, arguments[1]) for name, held in value.items()
        )
    if origin in (tuple, list):
        return isinstance(value, tuple | list) and all(_fits(part, arguments[0]) for part in value)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _named(hint: Any) -> str:
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join([*(_named(part) for part in parts), "None"])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"{hint.__name__}.{member.name}" for member in hint)
    return str(hint) if parts else f"{'an' if hint.__name__[0] in 'aeiou' else 'a'} {hint.__name__}"
