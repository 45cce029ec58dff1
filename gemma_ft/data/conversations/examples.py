"""The one place that turns rows of every shape into conversations or plain text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gemma_ft.config.rows import ColumnsConfig
from gemma_ft.data.conversations.messages import Turn, TurnNames, read_text, read_turns, turn_names
from gemma_ft.data.conversations.shapes import Shape, find_shape
from gemma_ft.data.sources.rows import Row, RowError, kind_of
from gemma_ft.data.sources.strict_json import parse_json

_ROLES_IN_TURN = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that alternate from user to assistant and end with the assistant."""

    messages: tuple[Turn, ...]
    """Role (user or assistant) and text of each turn, as they stand in the row."""
    system: str = ""
    """The system message; `fold_system` puts it where Gemma can read it."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, learned whole."""

    text: str


Example = Conversation | Text


def build_example(row: Row, columns: ColumnsConfig | None = None, prefix: str = "dataset") -> Example:
    """Normalise a row.

    Args:
        row: The row.
        columns: Names of the columns that are not those of a known shape.
        prefix: The prefix of the keys that hold them, for messages.

    Raises:
        RowError: Its columns fit no shape, or what they hold is no conversation; the message names the row.
    """
    shape = find_shape(row, columns, prefix)
    return _BUILDERS[shape.name](_Cells(row, shape, turn_names(columns)))


def build_prompt(messages: Iterable[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Normalise the messages of a conversation that the model is to go on with: the last one is the user's.

    Raises:
        RowError: They do not alternate from user to user.
    """
    return fold_system(_conversation(read_turns(list(messages), "prompt"), "prompt", last="user"))


def fold_system(conversation: Conversation) -> tuple[Turn, ...]:
    """Put the system message before the first user's words, since Gemma's turns know no system."""
    if not conversation.system:
        return conversation.messages
    (role, first), *rest = conversation.messages
    return ((role, f"{conversation.system.strip()}\n\n{first.strip()}"), *rest)


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of a row by what they mean in its shape."""

    row: Row
    shape: Shape
    names: TurnNames

    def value(self, key: str) -> Any:
        value = self.row.values[self.shape.column(key)]
        if isinstance(value, RowError):  # that it could not be read matters now
            raise value
        return value

    def text(self, key: str) -> str:
        return read_text(self.value(key), self.row.where, self._place(key))

    def items(self, key: str) -> list[Any]:
        value, where = self.value(key), self.row.where
        if isinstance(value, str) and value.lstrip().startswith("["):  # the cell of a CSV
            value = _parse_cell(value, where, self.shape.column(key))
        if not isinstance(value, list):
            cause = f"{kind_of(value)} where a list of turns must stand"
            raise RowError(where, cause, "Correct or remove the row.", detail=self._place(key))
        if not value:
            raise RowError(where, "an empty list", "Fill it or remove the row.", detail=self._place(key))
        return value

    def system(self) -> list[Turn]:
        """Read the column of the system message, where there is one that says something."""
        column = self.shape.column("system")
        value = self.row.values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return []
        return [("system", self.text("system"))]

    def _place(self, key: str) -> str:
        return f"in column {self.shape.column(key)}"


def _parse_cell(text: str, where: str, column: str) -> Any:
    python = text.lstrip()[1:].lstrip().startswith(("{'", "'"))
    hint = "It is Python; write it with json.dumps." if python else "Write a list of turns as JSON."
    try:
        return parse_json(text, where, hint)
    except RowError as error:
        _, cause, hint, _, detail = error.args
        raise RowError(where, cause, hint, f"column {column} holds", detail) from None


def _from_turns(cells: _Cells) -> Example:
    items = cells.items("messages")
    if cells.shape.named and all(isinstance(item, str) for item in items):
        return _alternate(items, cells)
    turns = read_turns(items, cells.row.where, cells.names)
    return _conversation(cells.system() + turns, cells.row.where)


def _from_alternating(cells: _Cells) -> Example:
    return _alternate(cells.items("messages"), cells)


def _alternate(texts: Sequence[Any], cells: _Cells) -> Conversation:
    where = cells.row.where
    turns = [
        (_ROLES_IN_TURN[i % 2], read_text(text, where, f"in turn {i + 1}")) for i, text in enumerate(texts)
    ]
    return _conversation(cells.system() + turns, where)


def _from_sides(cells: _Cells) -> Example:
    turns: list[Turn] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(cells.value(key), list):
            of = f" of {cells.shape.column(key)}"
            turns += read_turns(cells.items(key), cells.row.where, cells.names, of)
        else:
            turns.append((role, cells.text(key)))
    return _conversation(cells.system() + turns, cells.row.where)


def _from_instruction(cells: _Cells) -> Example:
    question = cells.text("instruction")
    given = cells.row.values.get(cells.shape.column("input"))
    if given is not None and not (isinstance(given, str) and not given.strip()):
        question += "\n\n" + cells.text("input")
    turns = [*cells.system(), ("user", question), ("assistant", cells.text("output"))]
    return _conversation(turns, cells.row.where)


def _from_text(cells: _Cells) -> Example:
    return Text(cells.text("text"))


def _from_quote(cells: _Cells) -> Example:
    return Text(f"Quote: {cells.text('quote')}\nAuthor: {cells.text('author')}")


_BUILDERS: dict[str, Callable[[_Cells], Example]] = {
    "turns": _from_turns,
    "alternating": _from_alternating,
    "sides": _from_sides,
    "instruction": _from_instruction,
    "text": _from_text,
    "quote": _from_quote,
}


def _conversation(turns: list[Turn], where: str, last: str = "assistant") -> Conversation:
    system = ""
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    _check_order([role for role, _ in turns], where, last, bool(system))
    return Conversation(tuple(turns), system)


def _check_order(roles: Sequence[str], where: str, last: str, has_system: bool) -> None:
    fault = None
    if "system" in roles:
        fault = "a system message after the start", "Only the first message may be one."
        if has_system and roles[0] == "system":
            fault = "two system messages", "Join them."
    elif not roles:
        fault = "no turns", "Add some or remove the row."
        if has_system:
            fault = "a system message and no turns", "Add some or remove the row."
    elif roles[0] != "user":
        fault = "begins with an assistant turn", "Begin with the user's."
    else:
        twice = next((role for before, role in pairwise(roles) if before == role), None)
        if twice:
            fault = f"two {twice} turns in a row", "Join them or remove one."
        elif roles[-1] != last:
            fault = f"ends with the {roles[-1]}'s turn", f"The last turn must be the {last}'s."
    if fault:
        raise RowError(where, *fault)
