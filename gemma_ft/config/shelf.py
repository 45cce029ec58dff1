"""Hold the files that one command line may choose from, and check those that it does choose."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gemma_ft.config.catalog import RECIPE, Option, load_options
from gemma_ft.config.checks import find_problems
from gemma_ft.config.deltas import check_delta, is_whole_run, named_in_defaults
from gemma_ft.config.grammar import Grammar
from gemma_ft.config.schema import RunConfig
from gemma_ft.config.words import Checked, check_words
from gemma_ft.errors import ConfigError


def accept(config: RunConfig, checked: Checked, *, typed_only: bool) -> RunConfig:
    """Return a composed config, or raise the problems of its words and its own together.

    Args:
        config: What the good words make.
        checked: All words.
        typed_only: Of the config's problems, raise only those of keys that were typed: with a wrong choice
            the rest is not the config that was meant, and what a finished run was made with may be gone.

    Raises:
        ConfigError: With every problem.
    """
    problems = [
        problem
        for problem in find_problems(config)
        if not typed_only or problem.partition("=")[0] in checked.keys
    ]
    if checked.problems or problems:
        raise ConfigError(*checked.problems, *problems)
    return config


class Shelf:
    """The options and recipes of the package, of a user's folder and of single files."""

    def __init__(self, config_dir: str | None, read: Callable[[Path], Any], grammar: Grammar) -> None:
        """Find the files.

        Args:
            config_dir: A user's folder of recipes and options, or None.
            read: Reads a YAML file, or raises ConfigError.
            grammar: Hydra's grammar.
        """
        if config_dir is not None and not Path(config_dir).is_dir():
            raise ConfigError(
                f"--config-dir={config_dir} is no folder. Name one with recipes/ or e.g. model/ in it."
            )
        self.options = load_options(config_dir)
        self._read = read
        self._grammar = grammar

    def check(self, words: Sequence[str], *, multirun: bool = False) -> Checked:
        """Check words, and the files that they choose."""
        checked = check_words(words, self.options, self._grammar, multirun=multirun)
        seen: set[tuple[str, str]] = set()
        for stem, path in checked.recipe_files.items():
            self._add_recipe(stem, path)
            if multirun and self._is_whole_run(path):
                checked.problems.append(
                    f"recipe={path} is a run's whole config and beats a sweep's choices. Sweep its recipe."
                )
        if checked.swept and any(w.startswith("output_dir=") and "${" not in w for w in checked.words):
            checked.problems.append(
                "output_dir= is one folder for all jobs of a sweep. Leave it out, or end it in '/${name}'."
            )
        for group, names in checked.choices.items():
            for name in names:
                found = self._file_problems(group, name, seen)
                checked.problems += found
                checked.choice_refused |= bool(found)
        return checked

    def contents(self) -> Iterator[tuple[Option, dict[str, Any]]]:
        """Yield each file with the part of its content that can be composed."""
        for option in [option for options in self.options.values() for option in options.values()]:
            try:
                content = self._read(option.path)
            except ConfigError:
                continue  # nobody chose it, or its problem is already told
            yield option, check_delta(option, content, self.options)[0]

    def _add_recipe(self, stem: str, path: Path) -> None:
        """Take in a user's recipe, and those in the same folder that it starts from."""
        self.options[RECIPE][stem] = Option(group=RECIPE, name=stem, path=path)
        try:
            named = named_in_defaults(self._read(path), RECIPE)
        except ConfigError:
            return
        for group, name in named:
            beside = path.parent / f"{name}.yaml"
            if group == RECIPE and name not in self.options[RECIPE] and beside.is_file():
                self._add_recipe(name, beside)

    def _is_whole_run(self, path: Path) -> bool:
        try:
            return is_whole_run(self._read(path))
        except ConfigError:
            return False

    def _file_problems(self, group: str, name: str, seen: set[tuple[str, str]]) -> list[str]:
        if (group, name) in seen or name not in self.options.get(group, {}):
            return []
        seen.add((group, name))
        option = self.options[group][name]
        try:
            content = self._read(option.path)
        except ConfigError as error:
            return list(error.problems)
        problems = check_delta(option, content, self.options)[1]
        for chosen_group, chosen in named_in_defaults(content, group):
            problems += self._file_problems(chosen_group, chosen, seen)
        return problems
