"""What `trainer.extra` must not carry: what a key sets, what reaches round a promise, what is unknown."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from gemma_ft.config.sft_arguments import ABOVE_ZERO, CHOICES, NAMED, NESTED, PASSED, REFUSED
from gemma_ft.secrets import is_secret_name

_SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}


def find_extra_problems(extra: Mapping[str, Any], trainer_keys: frozenset[str]) -> list[str]:
    """List the entries of `trainer.extra` that cannot be passed on.

    An argument that is new in TRL is unknown here until somebody has looked at what it reaches.

    Args:
        extra: The entries.
        trainer_keys: Names of the trainer section's own keys.
    """
    problems = []
    for name, value in extra.items():
        said = say_entry(f"trainer.extra.{name}", value)
        named = f"trainer.{name}" if name in trainer_keys else NAMED.get(name)
        if named is not None:
            problems.append(f"{said} is set by a key of its own. Use {named}.")
        elif name in REFUSED:
            problems.append(f"{said} {REFUSED[name]}. Take it out.")
        elif name not in PASSED:
            problems.append(f"{said} is no argument of TRL's SFTConfig that is known here. {_nearest(name)}")
        else:
            problems += _value_problems(name, value)
    return problems


def say_entry(key: str, value: object) -> str:
    """Write an entry as it was typed, but for what could be a secret."""
    secret = any(is_secret_name(part) for part in key.split("."))
    return key if secret or not isinstance(value, str | int | float | None) else f"{key}={value}"


def _nearest(name: str) -> str:
    near = get_close_matches(name, PASSED, n=1)
    return f"Did you mean trainer.extra.{near[0]}?" if near else "See TRL's SFTConfig for the names."


def _value_problems(name: str, value: object) -> list[str]:
    key = f"trainer.extra.{name}"
    if problems := _type_problems(key, value, PASSED[name]):
        return problems
    if name in CHOICES and value not in CHOICES[name]:
        return [f"{say_entry(key, value)} cannot be resumed exactly. Use {' or '.join(CHOICES[name])}."]
    if isinstance(value, Mapping) and name in NESTED:
        known = NESTED[name]
        problems = find_unknown_keys(key, value, tuple(known), reader="TRL")
        for inner, types in known.items():
            problems += _type_problems(f"{key}.{inner}", value[inner], types) if inner in value else []
        return problems
    return []


def _type_problems(key: str, value: object, types: tuple[type, ...]) -> list[str]:
    fits = isinstance(value, types) or (float in types and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in types):
        how = (
            f"Write +{key}.KEY=VALUE"
            if dict in types
            else f"Give {' or '.join(map(_SAID.__getitem__, types))}"
        )
        return [f"{say_entry(key, value)} cannot be read. {how}."]
    if key.rpartition(".")[2] in ABOVE_ZERO and isinstance(value, int) and value < 1:
        return [f"{say_entry(key, value)} must be above 0. Give a positive number, or leave it out."]
    return []


def find_unknown_keys(
    group: str, given: Mapping[str, object], known: tuple[str, ...], *, reader: str
) -> list[str]:
    """List the keys in a group that nothing reads, each with the nearest right name.

    Args:
        group: The key of the group.
        given: What is in it.
        known: The keys that are read.
        reader: What reads them, for the message.
    """
    problems = []
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"It reads {', '.join(known)}." if known else "Take it out."
            hint = f"Did you mean {near[0]}?" if near else hint
            problems.append(f"{say_entry(f'{group}.{name}', value)} is nothing that {reader} reads. {hint}")
    return problems
