"""Secrets in a configuration, which the run folder would keep: refused before anything is written."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from gemma_ft.config.schema import RunConfig
from gemma_ft.secrets import is_secret_name, redact

_MARKER = re.compile(r"\[secret ?([^\]]*)\]")
_SHORTEST = 8
_TOKENS_OF_TEXT = re.compile(r"(?:bos|eos|pad|unk|mask)_token|tokens$")
_HUB = "Take it out, and run `hf auth login` or set HF_TOKEN"
_WANDB = "Take it out, and run `wandb login` or set WANDB_API_KEY"
_ADDRESS = "Take it out: download what it protects, and give the file's path"
_ELSE = "Take it out; what needs it reads it from the environment"


def find_secret_problems(config: RunConfig) -> list[str]:
    """List the keys that hold a secret, each with what to do instead; never its value."""
    return [problem for key, value in _strings(config, "") if (problem := _problem(key, value)) is not None]


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a configuration with its key."""
    if isinstance(value, str) and not isinstance(value, Enum):
        yield key, value
    elif is_dataclass(value):
        for item in fields(value):
            yield from _strings(getattr(value, item.name), f"{key}.{item.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, held in value.items():
            yield f"{key}.{name}", ""
            yield from _strings(held, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _strings(held, key)


def _problem(key: str, value: str) -> str | None:
    shown = redact(key)
    if shown != key:
        return f"{shown} is a name that holds a secret, which config.yaml would keep. {_ELSE}."
    source = _find_secret(value)
    if source is None and not _is_named_secret(key, value):
        return None
    said = f"the value of {source}" if source else "a secret"
    return f"{key} holds {said}, which config.yaml would keep. {_advice(key, value, source or '')}."


def _find_secret(value: str) -> str | None:
    """Return where a secret in a text comes from, empty where only its shape tells; None without one."""
    for text in (value, *value.split()):
        clean = redact(text)
        found = _MARKER.search(clean) if clean != text else None
        # prose such as "the password: swordfish" is a prompt; a secret by its shape is one word
        if found is not None and (found[1] or text != value or " " not in value):
            return found[1]
    return None


def _is_named_secret(key: str, value: str) -> bool:
    """Tell whether a further argument of a library is called a secret, whatever it looks like."""
    name = key.rpartition(".")[2]
    extra = key.startswith("trainer.extra.") and not _TOKENS_OF_TEXT.search(name)
    return extra and is_secret_name(name) and len(value) >= _SHORTEST


def _advice(key: str, value: str, source: str) -> str:
    if key.startswith("tracking.") or source.startswith("WANDB"):
        return _WANDB
    if "hf_" in value or "hub" in source or source.startswith("HF_") or key.endswith("hub_token"):
        return _HUB
    return _ADDRESS if "://" in value else _ELSE
