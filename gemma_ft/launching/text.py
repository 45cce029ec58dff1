"""Write values into the text of other languages so that they are read as they were given."""

import json
import shlex
from functools import cache
from importlib.resources import files
from string import Template
from textwrap import indent


class _Blanks(Template):
    """A text with blanks like %%{name}, which neither bash, YAML nor Slurm have."""

    delimiter = "%%"
    idpattern = r"(?!)"
    braceidpattern = r"[a-z_]+"


@cache
def _template(name: str) -> _Blanks:
    return _Blanks(files("gemma_ft.launching").joinpath("templates", name).read_text(encoding="utf-8"))


def fill(template: str, **blanks: object) -> str:
    """Fill in a file of templates/; every blank must be given, and every value is text of its language."""
    return _template(template).substitute(blanks)


def bash_word(word: str) -> str:
    """Write one word as bash reads it back, in one line, whatever is in it.

    What does not print, line ends above all, is written by its bytes, which read alike in every locale.
    """
    if all(character.isprintable() for character in word):
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def bash_lines(words: tuple[str, ...]) -> str:
    """Write words as the lines of a bash array."""
    return "".join(f"  {bash_word(word)}\n" for word in words).rstrip("\n")


def yaml_text(value: str) -> str:
    """Write a text as a YAML scalar: a JSON string is one."""
    return json.dumps(value, ensure_ascii=False)


def yaml_block(text: str, spaces: int) -> str:
    """Indent lines of a YAML block scalar (`|`), to be filled in where the first one's indent stands."""
    return indent(text.rstrip("\n"), " " * spaces)[spaces:]


def comment(text: str) -> str:
    """Write lines as comments of bash, YAML or Python; what does not print is blotted out."""
    lines = text.split("\n")
    return "\n".join("# " + "".join(c if c.isprintable() else "?" for c in line) for line in lines)
