"""JSON read to the letter: what the json library lets pass is a fault of its row."""

import json
from collections.abc import Callable
from typing import Any

from gemma_ft.data.sources.rows import RowError, show


class Fault(Exception):  # noqa: N818 - it stands for a value as often as it is raised
    """Carry cause, detail and hint of a value that is no JSON, though the json library lets it pass."""

    def at(self, where: str) -> RowError:
        """Say which row has it."""
        cause, detail, hint = self.args
        return RowError(where, cause, hint, detail=detail)


_ENDLESS = Fault("a number of too many digits", "", "Write it as text, or remove the row.")


def _decoder(handle: Callable[[Fault], Any], parse_int: Callable[[str], Any] | None) -> json.JSONDecoder:
    def as_dict(pairs: list[tuple[str, Any]]) -> Any:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        return handle(Fault("a key that stands twice", f"({show(twice)})", "Remove one of them."))

    return json.JSONDecoder(object_pairs_hook=as_dict, parse_int=parse_int)


def _raise(fault: Fault) -> Any:
    raise fault


_STRICT = _decoder(_raise, None)


def parse_json(text: str, where: str, hint: str) -> Any:
    """Read the JSON value of one row.

    Args:
        text: The JSON.
        where: The row's place.
        hint: What to do if it is none.

    Raises:
        RowError: It is no JSON, has a key twice, or holds what no program can hold.
    """
    try:
        return _STRICT.decode(text)
    except Fault as fault:
        raise fault.at(where) from None
    except json.JSONDecodeError as error:
        raise RowError(where, "no JSON", hint, detail=f"({error.msg}, column {error.pos + 1})") from None
    except RecursionError:
        raise RowError(where, "brackets that are nested too deeply", "Correct or remove the row.") from None
    except ValueError:
        raise _ENDLESS.at(where) from None


def is_cut_off(text: str) -> bool:
    """Tell whether a text is the beginning of JSON, without its end."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip(" \t\r\n"))
    return False


def parse_marked(text: str) -> tuple[Any, bool]:
    """Read JSON whole; each value that is no JSON to the letter is its Fault.

    Returns:
        The value, and whether there is a fault in it.

    Raises:
        json.JSONDecodeError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    faults: list[Fault] = []

    def mark(fault: Fault) -> Fault:
        faults.append(fault)
        return fault

    def whole(digits: str) -> Any:
        try:
            return int(digits)
        except ValueError:
            return mark(_ENDLESS)

    return _decoder(mark, whole).decode(text), bool(faults)


def find_fault(value: Any) -> Fault | None:
    """Find a fault somewhere in a value that `parse_marked` read."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Fault):
            return value
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return None
