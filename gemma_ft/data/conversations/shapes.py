"""Which of the known shapes a row has, and what its columns are called."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from operator import attrgetter
from typing import Any

from gemma_ft.config.rows import ColumnsConfig
from gemma_ft.data.sources.rows import Row, RowError, show

_MOST_COLUMNS = 12
_TURN_KEYS = ("role", "content", "user", "assistant")
"""Keys of ColumnsConfig that name parts of turns, not columns."""
_COLUMN_KEYS = tuple(item.name for item in fields(ColumnsConfig) if item.name not in _TURN_KEYS)
_read_names = attrgetter(*_COLUMN_KEYS)


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of rows that can be learned from."""

    name: str
    columns: Mapping[str, str]
    """Its columns by the keys of `dataset.columns`; a row of this shape has all of them."""
    optional: Mapping[str, str]
    """Columns that it may have beside."""
    named: frozenset[str] = frozenset()
    """Keys that the user set."""

    def column(self, key: str) -> str:
        """Return what the column of a key is called."""
        return self.columns.get(key) or self.optional[key]

    def __str__(self) -> str:
        optional = [f"[{column}]" for key, column in self.optional.items() if key != "system"]
        return ", ".join([*self.columns.values(), *optional])


def _shape(name: str, *keys: str, optional: tuple[str, ...] = (), **columns: str) -> Shape:
    return Shape(name, {key: key for key in keys} | columns, {key: key for key in optional})


SHAPES = (
    _shape("turns", "messages", optional=("system",)),
    _shape("turns", messages="conversations", optional=("system",)),
    _shape("alternating", messages="data", optional=("system",)),
    _shape("sides", "prompt", "completion", optional=("system",)),
    _shape("instruction", "instruction", "output", optional=("input", "system")),
    _shape("text", "text"),
    _shape("quote", "quote", "author"),
)
"""The known shapes; the first that fits a row is taken."""


def find_shape(row: Row, columns: ColumnsConfig | None, prefix: str) -> Shape:
    """Find the shape of a row. One with a column that the user named wins over all others.

    Args:
        row: The row.
        columns: The user's names of columns.
        prefix: The prefix of the keys that hold them, for messages.

    Raises:
        RowError: It fits none, or a named column is missing.
    """
    shapes = _named_shapes(_read_names(columns)) if columns is not None else SHAPES
    values = row.values
    fitting = [shape for shape in shapes if all(column in values for column in shape.columns.values())]
    if not fitting:
        raise _missing(row, shapes, prefix) if shapes[0].named else _unknown(row)
    if len(fitting) == 1:
        return fitting[0]
    # Files that mix shapes fill the columns of the others with null, or with nothing in a CSV.
    return next((shape for shape in fitting if _is_filled(shape, values)), fitting[0])


def unused_columns(row: Row, columns: ColumnsConfig | None, prefix: str) -> list[str]:
    """List the columns of a row that its shape has no use for.

    Raises:
        RowError: It has no shape.
    """
    shape = find_shape(row, columns, prefix)
    used = {*shape.columns.values(), *shape.optional.values()}
    return [str(column) for column in row.values if column not in used]


def _is_filled(shape: Shape, values: Mapping[str, Any]) -> bool:
    if shape.name == "alternating" and not shape.named:  # a common name for other things too
        return isinstance(values["data"], list)
    return any(values[column] not in (None, "") for column in shape.columns.values())


@lru_cache(maxsize=64)
def _named_shapes(names: tuple[str | None, ...]) -> tuple[Shape, ...]:
    """Give the shapes that the user named columns of their names; all shapes where there are none."""
    own = {key: name for key, name in zip(_COLUMN_KEYS, names, strict=True) if name is not None}
    shapes = []
    for shape in SHAPES if own.keys() == {"system"} else SHAPES[:1] + SHAPES[3:]:
        named = frozenset(own) & {*shape.columns, *shape.optional}
        if named:
            columns = {key: own.get(key, column) for key, column in shape.columns.items()}
            columns |= {key: own[key] for key in shape.optional if key in own}
            optional = {key: column for key, column in shape.optional.items() if key not in own}
            shapes.append(Shape(shape.name, columns, optional, named))
    return tuple(shapes) or SHAPES


def _missing(row: Row, shapes: tuple[Shape, ...], prefix: str) -> RowError:
    seen = f"({_list_columns(row)})"
    for shape in shapes:
        for key in sorted(shape.named):
            column = shape.columns[key]
            if column not in row.values:
                near = get_close_matches(column, map(str, row.values), 1)
                hint = f"Did you mean {show(near[0])}?" if near else "Name one of them."
                said = f"{prefix}.columns.{key}={show(column)}"
                return RowError(row.where, "is not among the columns", hint, place=said, detail=seen)
    key, column = next(item for item in shapes[0].columns.items() if item[1] not in row.values)
    first = min(shapes[0].named)
    said = f"{prefix}.columns.{first}={show(shapes[0].columns[first])} needs {column} beside, which"
    hint = f"Name yours: {prefix}.columns.{key}=..."
    return RowError(row.where, "is not among the columns", hint, place=said, detail=seen)


def _unknown(row: Row) -> RowError:
    known = " | ".join(map(str, SHAPES))
    hint = f"Name them with dataset.columns.*, or rename them to one of: {known}."
    near = _differently_spelled(row)
    if near:
        seen = show(near[0]) if near[0] == near[0].strip() else f"'{show(near[0])}'"
        hint = f"Rename {seen} to {near[1]}. The shapes want: {known}."
    detail = f"in columns {_list_columns(row)}" if row.values else "in an object without columns"
    return RowError(row.where, "no known shape", hint, detail=detail)


def _differently_spelled(row: Row) -> tuple[str, str] | None:
    spelled = {str(column).strip().lower(): str(column) for column in row.values}
    for shape in SHAPES:
        wanted = shape.columns.values()
        if all(column in spelled for column in wanted):
            return next((spelled[column], column) for column in wanted if spelled[column] != column)
    return None


def _list_columns(row: Row) -> str:
    names = [show(column) for column in list(row.values)[:_MOST_COLUMNS]]
    more = len(row.values) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
