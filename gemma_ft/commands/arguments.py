"""A command's own flags, with mistakes answered in one line like those in the config."""

import argparse
import difflib
from typing import NoReturn

from gemma_ft.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Parse a command's words; a wrong flag is a ConfigError that names the nearest right one."""

    def __init__(
        self, *, prog: str, description: str, epilog: str | None = None, add_help: bool = True
    ) -> None:
        super().__init__(
            prog=f"python -m gemma_ft {prog}",
            description=description,
            epilog=epilog,
            add_help=add_help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with a usage text."""
        _, unknown, words = message.partition("unrecognized arguments: ")
        if not unknown:
            raise ConfigError(f"{message}. `{self.prog} --help` lists what it takes.")
        if not any(word.startswith("-") for word in words.split()):
            raise ConfigError(
                f"{words} is nothing that this command takes. `{self.prog} --help` lists what it takes."
            )
        raise ConfigError(
            *(
                f"{word} is no flag of this command. {self._hint(word)}"
                for word in words.split()
                if word.startswith("-")
            )
        )

    def _hint(self, word: str) -> str:
        near = difflib.get_close_matches(word.partition("=")[0], list(self._option_string_actions), 1)
        return f"Did you mean {near[0]}?" if near else f"`{self.prog} --help` lists what it takes."
