"""List every key with its type, its default and the words under it in the dataclasses."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from gemma_ft.config.keys import type_words
from gemma_ft.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyDoc:
    """What there is to know about one key."""

    key: str
    type: str
    """What it takes, in words."""
    default: str
    doc: str


def key_docs() -> list[KeyDoc]:
    """List every key of a run in the order of the dataclasses."""
    return list(_section_docs(RunConfig, ""))


def _section_docs(section: Any, prefix: str) -> Iterator[KeyDoc]:
    types = get_type_hints(section)
    docs: dict[str, str] = {}
    for kind in reversed(section.__mro__[:-1]):
        docs |= _field_docs(kind)
    for item in fields(section):
        annotation = types[item.name]
        if is_dataclass(annotation):
            yield from _section_docs(annotation, f"{prefix}{item.name}.")
            continue
        factory = item.default_factory
        default = item.default if factory is MISSING else factory()
        yield KeyDoc(
            key=prefix + item.name,
            type=type_words(annotation),
            default=_shown(default),
            doc=docs.get(item.name, ""),
        )


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ",".join(value) + "]" if isinstance(value, tuple) else str(value)


def _field_docs(section: Any) -> dict[str, str]:
    """Read the string under each field, which Python itself throws away."""
    source = sys.modules[section.__module__].__file__
    assert source is not None
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    docs = {}
    for field, below in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
        ):
            docs[field.target.id] = str(ast.literal_eval(below.value))
    return docs
