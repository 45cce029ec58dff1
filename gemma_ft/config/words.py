"""Check the words of a command line one by one, and write them as Hydra's grammar wants them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from gemma_ft.config.catalog import GROUPS, RECIPE
from gemma_ft.config.choices import Options, find_recipe_file, unknown_choice
from gemma_ft.config.grammar import Grammar, Reading
from gemma_ft.config.keys import (
    EXTRA,
    MIXTURE,
    advice,
    fit,
    is_optional,
    key_type,
    mixture_keys,
    plain_type,
)

_COMMA = re.compile(r",(?![^\[]*\])")
"""A comma outside of brackets, as between train[:5%],train[5%:]."""
_WORD = re.compile(r"(\+\+?|~)?([^=]*)=(.*)", re.DOTALL)


@dataclass(kw_only=True, slots=True)
class Checked:
    """The words of one command line after checking."""

    words: list[str] = field(default_factory=list)
    """Words that can be composed, in Hydra's grammar."""
    problems: list[str] = field(default_factory=list)
    """One line for each word that cannot work."""
    keys: set[str] = field(default_factory=set)
    """Full names of the keys that were set by good words."""
    swept: set[str] = field(default_factory=set)
    """Keys and groups that take several values."""
    choices: dict[str, list[str]] = field(default_factory=dict)
    """Options chosen by good words, by group."""
    recipe_files: dict[str, Path] = field(default_factory=dict)
    """Recipes given as a file, by their stem."""
    choice_refused: bool = False
    """A group or recipe was chosen that does not exist: the rest is not the config that was meant."""


def check_words(
    words: Iterable[str], options: Options, grammar: Grammar, *, multirun: bool = False
) -> Checked:
    """Check the words of a command line against keys, groups and recipes.

    Args:
        words: `key=value` in the form of Hydra's overrides.
        options: Every option by group and name, recipes included.
        grammar: Hydra's grammar.
        multirun: Several values (a,b,c) are a sweep instead of an error.
    """
    checked = Checked()
    checker = _Checker(checked, options, grammar, multirun)
    for word in words:
        checker.check(word)
    return checked


class _Checker:
    def __init__(self, checked: Checked, options: Options, grammar: Grammar, multirun: bool) -> None:
        self.checked = checked
        self.options = options
        self.grammar = grammar
        self.multirun = multirun
        self.sources: list[str] = []

    def check(self, word: str) -> None:
        match = _WORD.fullmatch(word)
        if match is None:
            self.checked.problems.append(_no_assignment(word))
            return
        sign, key, raw = match.group(1) or "", match.group(2).strip(), match.group(3).strip()
        problem: str | None
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            problem = self._take_hydra(word, key, raw)
        elif sign == "~":
            problem = f"{word} cannot take a key away. Give the key a value instead, e.g. null or none."
        elif key in (*GROUPS, RECIPE):
            problem = self._take_choice(key, raw)
            self.checked.choice_refused |= problem is not None
        elif key_type(key) is not None and key not in (EXTRA, MIXTURE):
            problem = self._take_value(key, raw)
        elif key == MIXTURE and raw.startswith("{"):
            problem = self._take_mixture(raw)
        elif key == EXTRA or key.startswith(EXTRA + "."):
            problem = self._take_extra(key, raw)
        else:
            problem = f"{key}={raw} is no key of a run. {advice(key, raw)}"
        if problem is not None:
            self.checked.problems.append(problem)

    def _take_hydra(self, word: str, key: str, raw: str) -> str | None:
        if not self.grammar.read(raw).valid:
            return self._unread(key, raw)
        self.checked.words.append(word)
        return None

    def _take_choice(self, group: str, raw: str) -> str | None:
        if group in self.checked.choices:
            before = ",".join(self.checked.choices[group])
            return f"{group}={raw} is the second choice of {group}, after {group}={before}. Keep one of them."
        reading = self._reading(raw)
        if not reading.valid:  # a name that is no word of Hydra's grammar, like a path with an accent
            reading = Reading(valid=True, values=(raw,))
        if reading.swept and not self.multirun:
            return f"{group}={raw} names several. Add --multirun to run each of them, or keep one."
        if reading.swept and not reading.values:
            self.checked.choices[group] = sorted(self.options[group])  # glob(...)
            self._accept(group, raw, swept=True)
            return None
        found = [self._find_choice(group, value) for value in reading.values]
        problems = [problem for _, problem in found if problem is not None]
        if problems:
            return "\n".join(problems)
        self.checked.choices[group] = [name for name, _ in found if name != "null"]
        if self.checked.choices[group]:  # recipe=null is no recipe
            names = ",".join(self._written(name) for name in self.checked.choices[group])
            self._accept(group, names, swept=reading.swept)
        return None

    def _find_choice(self, group: str, value: Any) -> tuple[str, str | None]:
        name = "null" if value is None else str(value)
        if group == RECIPE:
            if name in ("null", ""):
                return "null", None
            if "/" in name or "\\" in name or name.endswith((".yaml", ".yml")):
                stem, path, problem = find_recipe_file(name, self.options)
                if path is not None:
                    self.checked.recipe_files[stem] = path
                return stem, problem
        if name in self.options[group]:
            return name, None
        return name, unknown_choice(f"{group}={name}", group, name, self.options)

    def _take_value(self, key: str, raw: str) -> str | None:
        kind = plain_type(key_type(key))
        reading = self._reading(raw)
        if kind is str:
            reading = self._literal(key, raw, reading)
        elif get_origin(kind) is tuple and reading.simple and not self.multirun:
            reading = Reading(valid=True, values=(list(reading.values),))
        if not reading.valid:
            return self._unread(key, raw)
        if reading.swept and not self.multirun:
            return f"{key}={raw} gives several values. Add --multirun to run each of them, or keep one."
        values = []
        for value in reading.values:
            try:
                values.append(fit(key, value))
            except ValueError as error:
                return f"{key}={_shown(value)} {error}"
        self.checked.keys.add(key)
        rewritten = values and (reading.simple or not reading.swept)
        text = ",".join(self._written(value) for value in values) if rewritten else raw
        self._accept(key, text, swept=reading.swept)
        return None

    def _take_mixture(self, raw: str) -> str | None:
        """Take a mixture written as one mapping, key by key."""
        reading = self._reading(raw)
        if reading.swept or not reading.valid or not isinstance(reading.values[0], dict):
            return f"{MIXTURE}={raw} is no mapping of sources. {advice(MIXTURE)}"
        found = list(mixture_keys(reading.values[0]))
        unknown = [
            f"{key}={value} is no key of a run. {advice(key)}" for key, value in found if not key_type(key)
        ]
        taken = () if unknown else [self._take_value(key, self._written(value)) for key, value in found]
        self._declare(reading.values[0])
        return "\n".join([*unknown, *(problem for problem in taken if problem)]) or None

    def _declare(self, sources: Iterable[str]) -> None:
        """Make room for sources of a mixture, in one word: a sweeper keeps one word a key."""
        self.sources = list(dict.fromkeys([*self.sources, *sources]))
        word = f"++{MIXTURE}={{{','.join(f'{name}:{{}}' for name in self.sources)}}}"
        others = [other for other in self.checked.words if not other.startswith(f"++{MIXTURE}=")]
        self.checked.words = [word, *others]

    def _take_extra(self, key: str, raw: str) -> str | None:
        reading = self._reading(raw)
        if reading.swept and not self.multirun:
            return f"{key}={raw} gives several values. Add --multirun to run each of them, or keep one."
        self.checked.keys.add(EXTRA)
        self._accept(key, raw if reading.valid else self.grammar.quote(raw), swept=reading.swept, sign="++")
        return None

    def _literal(self, key: str, raw: str, reading: Reading) -> Reading:
        """Read a text as it was typed, unless it is quoted, null or a sweep.

        `train[:5%]`, a commit like 7e10234 or a path with `=` would otherwise be errors or numbers.
        """
        if reading.swept and self.multirun:
            return reading
        parts = _COMMA.split(raw)
        if self.multirun and not reading.valid and len(parts) > 1:
            return Reading(valid=True, swept=True, simple=True, values=tuple(parts))
        value = reading.values[0] if reading.values else None
        if reading.valid and not reading.swept and isinstance(value, str):
            return reading
        if reading.valid and value is None and not reading.swept and is_optional(key_type(key)):
            return reading
        if reading.valid and value is None and not reading.swept:
            return Reading(valid=True, values=(None,))
        return Reading(valid=True, values=(raw,))

    def _reading(self, raw: str) -> Reading:
        return self.grammar.read(raw) if raw else Reading(valid=True, values=("",))

    def _unread(self, key: str, raw: str) -> str:
        text = f"{key}={self.grammar.quote(raw)}"
        return f'{key}={raw} cannot be read. Put the value into quotes: "{text}".'

    def _written(self, value: Any) -> str:
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        if isinstance(value, str):
            plain = re.fullmatch(r"[\w./-]+", value) and self._reading(value).values == (value,)
            return value if plain else self.grammar.quote(value)
        return _shown(value)

    def _accept(self, key: str, text: str, *, swept: bool, sign: str = "") -> None:
        if key.startswith(MIXTURE + "."):
            self._declare([key.split(".")[2]])
            sign = "++"
        self.checked.words.append(f"{sign}{key}={text}")
        if swept:
            self.checked.swept.add(key)


def _no_assignment(word: str) -> str:
    if word in GROUPS or key_type(word) is not None or word == RECIPE:
        return f"{word} has no value. Type {word}=VALUE."
    if word.startswith("~"):
        return f"{word} cannot take a key away. Give the key a value instead, e.g. null or none."
    return f"{word} is no key=value. Commands come first, and a key and its value are one word around =."


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
