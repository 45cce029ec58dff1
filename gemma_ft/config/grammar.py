"""What Hydra's grammar makes of a text, as plain values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the text after `=` says in Hydra's grammar."""

    valid: bool
    """False: it does not parse."""
    swept: bool = False
    """Several values, one a job."""
    simple: bool = False
    """Swept in the form a,b,c."""
    values: tuple[Any, ...] = ()
    """The value, or those of a sweep that lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """Hydra's grammar as two calls, so that nothing else here needs Hydra."""

    read: Callable[[str], Reading]
    """Parse the text after `=`."""
    quote: Callable[[str], str]
    """Write a text so that it is read as that text."""
