"""Turns of a conversation, in whatever names and forms a row has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gemma_ft.config.rows import ColumnsConfig
from gemma_ft.data.sources.rows import RowError, kind_of, show

Turn = tuple[str, str]
"""Role (system, user or assistant) and text."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_NAMES = (("role", "content"), ("from", "value"))
_TOOL_ROLES = {"tool", "function", "observation", "function_call", "ipython"}
_TOOL_CALLS = ("tool_calls", "function_call")
_NO_TOOLS = "Gemma's turns know no tools: write them as user and assistant, or remove the row."
_MEND = "Correct or remove the row."
_FILL = "Fill it or remove the row."


@dataclass(frozen=True, slots=True)
class TurnNames:
    """What the parts of a turn and the roles are called."""

    pairs: tuple[tuple[str, str], ...] = _NAMES
    """Names that role and text may have together, the preferred ones first."""
    roles: Mapping[str, str] = field(default_factory=lambda: _ROLES)


DEFAULT_NAMES = TurnNames()
"""The names of the known shapes."""


def turn_names(columns: ColumnsConfig | None) -> TurnNames:
    """Return the names that a configuration gives, beside those of the known shapes."""
    if columns is None:
        return DEFAULT_NAMES
    return _turn_names(columns.role, columns.content, columns.user, columns.assistant)


@lru_cache(maxsize=64)
def _turn_names(role: str | None, content: str | None, user: str | None, assistant: str | None) -> TurnNames:
    named = [(user, "user"), (assistant, "assistant")]
    roles = _ROLES | {name: meaning for name, meaning in named if name}
    if role and content:
        return TurnNames(((role, content),), roles)
    if role or content:
        return TurnNames(tuple((role or r, content or c) for r, c in _NAMES), roles)
    return TurnNames(_NAMES, roles)


def read_turns(
    items: Sequence[Any], where: str, names: TurnNames = DEFAULT_NAMES, of: str = ""
) -> list[Turn]:
    """Read role and text of each turn.

    Args:
        items: Objects.
        where: The row's place.
        names: What their parts and roles are called.
        of: The column, where a row has two lists of turns.

    Raises:
        RowError: One is no turn.
    """
    turns = []
    role_name, content_name = names.pairs[0]
    for number, item in enumerate(items, start=1):
        place = f"in turn {number}{of}"
        if not isinstance(item, Mapping):
            cause = f"{kind_of(item)} where a turn must stand"
            raise RowError(where, cause, "Give it role and content.", detail=place)
        role, content = item.get(role_name), item.get(content_name)
        if role is None or content is None:
            role, content = _named_parts(item, names, where, place)
        meaning = names.roles.get(role) if type(role) is str else None
        if meaning is None:
            raise _unknown_role(role, names, where, place)
        if len(item) > 2 and any(item.get(calls) for calls in _TOOL_CALLS):
            raise RowError(where, "a tool call", _NO_TOOLS, detail=place)
        if meaning == "system" and (content is None or (isinstance(content, str) and not content.strip())):
            continue  # many data sets fill the place of a system, as Arrow and CSV fill its column
        turns.append((meaning, read_text(content, where, place)))
    return turns


def _named_parts(item: Mapping[str, Any], names: TurnNames, where: str, place: str) -> tuple[Any, Any]:
    pairs = [(item[role], item[content]) for role, content in names.pairs if role in item and content in item]
    if not pairs:
        wanted = ", or ".join(f"{role} and {content}" for role, content in names.pairs)
        seen = ", ".join(map(show, list(item)[:8])) or "nothing"
        raise RowError(
            where, "a turn without role and content", f"Give it {wanted}.", detail=f"{place} (it has {seen})"
        )
    # Where files mix both names, Arrow fills those that a row does not have with null.
    return next((pair for pair in pairs if None not in pair), pairs[0])


def _unknown_role(role: Any, names: TurnNames, where: str, place: str) -> RowError:
    if not isinstance(role, str):
        return RowError(where, f"{kind_of(role)} where a role must stand", _MEND, detail=place)
    said = f"'{show(role, 40)}' {place}"
    if role.lower() in _TOOL_ROLES:
        return RowError(where, "a tool's role", _NO_TOOLS, detail=said)
    near = role.strip().lower()
    known = next((name for name in names.roles if name.lower() == near), None)
    hint = f"Did you mean {known}?" if known else f"Use {_meant_roles(names)}."
    return RowError(where, "unknown role", hint, detail=said)


def _meant_roles(names: TurnNames) -> str:
    own = [name for name in names.roles if name not in _ROLES]
    said = ["system", "user", "assistant", *own]
    return f"{', '.join(said[:-1])} or {said[-1]}, or name yours in columns.user and columns.assistant"


def read_text(value: Any, where: str, place: str) -> str:
    """Read a text, or the text parts of a list; it stays as it is.

    Args:
        value: What stands there.
        where: The row's place.
        place: The place in the row, e.g. "in turn 3".

    Raises:
        RowError: It is no text, or there is nothing in it.
    """
    if isinstance(value, list):
        value = "".join([_part(part, where, place) for part in value])
    if not isinstance(value, str):
        raise RowError(where, f"{kind_of(value)} where text must stand", _MEND, detail=place)
    if not value or value.isspace():
        detail = f"(only white space) {place}" if value else place
        raise RowError(where, "empty text", _FILL, detail=detail)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"at character {error.start + 1} {place}"
            raise RowError(
                where, "half a character (a lone surrogate)", "Write the file again.", detail=detail
            ) from None
        if not any(letter.isprintable() and letter != " " for letter in value):  # zero-width marks only
            raise RowError(where, "empty text", _FILL, detail=f"(nothing that can be seen) {place}")
    return value


def _part(part: Any, where: str, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, str):
        raise RowError(where, "a list of texts where text must stand", "Join them to one.", detail=place)
    kind = f"type {show(part.get('type'), 40)}" if isinstance(part, Mapping) else kind_of(part)
    if isinstance(part, Mapping) and part.get("type") == "text":
        kind = f"{kind_of(part.get('text'))} as its text"
    raise RowError(
        where, "a part that is no text", "Only parts of type text can be learned.", detail=f"({kind}) {place}"
    )
