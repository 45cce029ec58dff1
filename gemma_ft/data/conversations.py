"""The one place that turns rows of every shape into conversations or plain text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gemma_ft.config.rows import ColumnsConfig
from gemma_ft.data.rows import Row
from gemma_ft.errors import DataError

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that alternate from user to assistant and end with the assistant."""

    messages: tuple[tuple[str, str], ...]
    """Role (user or assistant) and text of each turn, as they stand in the row."""
    system: str = ""
    """The system message; `fold_system` puts it where Gemma can read it."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, learned whole."""

    text: str


Example = Conversation | Text


@dataclass(frozen=True, slots=True)
class _Shape:
    columns: tuple[str, ...]
    """Columns that a row of this shape has, beside any others."""
    build: Callable[[Mapping[str, Any], str], Example]
    """Makes the example from the columns and the row's place."""
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*self.columns, *(f"[{column}]" for column in self.optional)])


def build_example(row: Row, columns: ColumnsConfig | None = None, prefix: str = "dataset") -> Example:
    """Normalise a row.

    Args:
        row: The row.
        columns: Names of the columns that are not those of a known shape.
        prefix: The prefix of the keys that hold them, for messages.

    Raises:
        RowError: Its columns fit no shape, or what they hold is no conversation; the message names the row.
    """
    fitting = [shape for shape in _SHAPES if all(column in row.values for column in shape.columns)]
    if not fitting:
        seen = ", ".join(map(str, row.values)) or "none"
        known = " | ".join(map(str, _SHAPES))
        raise DataError(f"{row.where}: columns {seen} fit no known shape. Rename them to one of: {known}.")
    # Files that mix shapes fill the columns of the others with null.
    filled = [shape for shape in fitting if any(row.values[column] is not None for column in shape.columns)]
    return (filled or fitting)[0].build(row.values, row.where)


def build_prompt(messages: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Normalise the messages of a conversation that the model is to go on with: the last one is the user's.

    Raises:
        DataError: They do not alternate from user to user.
    """
    return fold_system(_conversation(_turns(list(messages), "prompt"), "prompt", last="user"))


def fold_system(conversation: Conversation) -> tuple[tuple[str, str], ...]:
    """Put the system message before the first user's words, since Gemma's turns know no system."""
    if not conversation.system:
        return conversation.messages
    (role, first), *rest = conversation.messages
    return ((role, f"{conversation.system.strip()}\n\n{first.strip()}"), *rest)


def _from_messages(column: str) -> Callable[[Mapping[str, Any], str], Example]:
    def build(values: Mapping[str, Any], where: str) -> Example:
        return _conversation(_turns(_list(values[column], column, where), where), where)

    return build


def _from_alternating(values: Mapping[str, Any], where: str) -> Example:
    texts = _list(values["data"], "data", where)
    roles = ("user", "assistant")
    turns = [(roles[i % 2], _text(text, f"turn {i + 1}", where)) for i, text in enumerate(texts)]
    return _conversation(turns, where)


def _from_prompt(values: Mapping[str, Any], where: str) -> Example:
    prompt = _side(values["prompt"], "prompt", "user", where)
    return _conversation(prompt + _side(values["completion"], "completion", "assistant", where), where)


def _side(value: Any, column: str, role: str, where: str) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return _turns(value, where)
    return [(role, _text(value, column, where))]


def _from_instruction(values: Mapping[str, Any], where: str) -> Example:
    question = _text(values["instruction"], "instruction", where)
    if values.get("input") not in (None, ""):
        question += "\n\n" + _text(values["input"], "input", where)
    return _conversation([("user", question), ("assistant", _text(values["output"], "output", where))], where)


def _from_text(values: Mapping[str, Any], where: str) -> Example:
    return Text(_text(values["text"], "text", where))


def _from_quote(values: Mapping[str, Any], where: str) -> Example:
    quote, author = (_text(values[column], column, where) for column in ("quote", "author"))
    return Text(f"Quote: {quote}\nAuthor: {author}")


_SHAPES = (
    _Shape(("messages",), _from_messages("messages")),
    _Shape(("conversations",), _from_messages("conversations")),
    _Shape(("data",), _from_alternating),
    _Shape(("prompt", "completion"), _from_prompt),
    _Shape(("instruction", "output"), _from_instruction, optional=("input",)),
    _Shape(("text",), _from_text),
    _Shape(("quote", "author"), _from_quote),
)


def _turns(messages: Sequence[Any], where: str) -> list[tuple[str, str]]:
    """Read role and text of each message, in either pair of names (role/content, from/value)."""
    turns = []
    for number, message in enumerate(messages, start=1):
        place = f"turn {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{where}: {place} is {_kind(message)}, not an object with role and content.")
        role, content = ("from", "value") if "from" in message else ("role", "content")
        if role not in message or content not in message:
            seen = ", ".join(map(str, message)) or "nothing"
            raise DataError(f"{where}: {place} has {seen}. Give it role and content, or from and value.")
        name = message[role]
        if not isinstance(name, str) or name not in _ROLES:
            raise DataError(f"{where}: {place} has the unknown role {name!r}. Use system, user or assistant.")
        silent = (
            _ROLES[name] == "system" and message[content] == ""
        )  # many data sets fill the place of a system
        if not silent:
            turns.append((_ROLES[name], _text(message[content], f"the content of {place}", where)))
    return turns


def _text(value: Any, place: str, where: str) -> str:
    if isinstance(value, list):
        value = "".join(_part(part, place, where) for part in value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {place} is {_kind(value)}, not text. Correct or remove the row.")
    if not value.strip():
        raise DataError(f"{where}: {place} is empty. Fill it or remove the row.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"{where}: {place} holds half a character at position {error.start + 1} (a lone surrogate)."
        raise DataError(f"{half} Write the file again.") from None
    return value


def _part(part: Any, place: str, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = f"type {part.get('type')!r}" if isinstance(part, Mapping) else _kind(part)
    raise DataError(f"{where}: {place} has a part of {kind}. Only parts of type 'text' can be learned.")


def _list(value: Any, column: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {column} is {_kind(value)}, not a list. Correct or remove the row.")
    if not value:
        raise DataError(f"{where}: {column} is empty. Fill it or remove the row.")
    return value


def _kind(value: Any) -> str:
    names = {type(None): "null", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _conversation(turns: list[tuple[str, str]], where: str, last: str = "assistant") -> Conversation:
    system = ""
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    _check_order(turns, where, last=last)
    return Conversation(tuple(turns), system)


def _check_order(turns: Sequence[tuple[str, str]], where: str, last: str) -> None:
    roles = [role for role, _ in turns]
    if "system" in roles:
        raise DataError(f"{where}: a system message after the start. Only the first message may be one.")
    if not roles:
        raise DataError(f"{where}: no turns. Add some or remove the row.")
    if roles[0] != "user":
        raise DataError(f"{where}: begins with an assistant turn. Begin with the user's.")
    for before, role in pairwise(roles):
        if before == role:
            raise DataError(f"{where}: two {role} turns in a row. Join them or remove one.")
    if roles[-1] != last:
        raise DataError(f"{where}: ends with the {roles[-1]}'s turn. The last turn must be the {last}'s.")
