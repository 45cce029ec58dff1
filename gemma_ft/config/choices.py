"""Say what was meant by an option or recipe that does not exist."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from gemma_ft.config.catalog import RECIPE, Option
from gemma_ft.config.places import DATA_SUFFIXES

Options = Mapping[str, Mapping[str, Option]]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def unknown_choice(said: str, group: str, name: str, options: Options) -> str:
    """Say that a group has no such option, and what was likely meant.

    Args:
        said: The words that chose it, as they were written.
        group: A group of the config, or `recipe`.
        name: The option that does not exist.
        options: Every option by group and name.
    """
    known = sorted(options[group])
    listed = f"Choose one of {', '.join(known)}."
    if name in ("null", "") and "none" in known:
        return f"{said} is not how a choice is switched off. Type {group}=none."
    if group == "model" and ("/" in name or Path(name).is_dir()):
        return f"{said} is no option of model. Type model.path={name}."
    if group == "dataset" and (Path(name).exists() or name.endswith(DATA_SUFFIXES)):
        return f"{said} is no option of dataset. Type dataset=local dataset.path={name}."
    if group == "dataset" and _HUB_ID.fullmatch(name):
        return (
            f"{said} is no option of dataset. "
            f"Type dataset.source=hub dataset.path={name} dataset.split=train."
        )
    if group == RECIPE and Path(f"{name}.yaml").is_file():
        return f"{said} is no recipe of this package. Type recipe=./{name}.yaml for the file in this folder."
    close = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {group}={close[0]}? " if close else ""
    what = "recipe" if group == RECIPE else f"option of {group}"
    return f"{said} is no {what}. {hint}{listed}"


def find_recipe_file(name: str, options: Options) -> tuple[str, Path | None, str | None]:
    """Find a recipe that is named by its file.

    Returns:
        What the recipe is called, its file, and one line if there is none or its name cannot be used.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, options[RECIPE], 1)
        hint = f"Did you mean recipe={near[0]}?" if near else "Name an existing .yaml file."
        return name, None, f"recipe={name} is no file. {hint}"
    if not re.fullmatch(r"\w[\w.+-]*", path.stem):
        hint = "Rename it with letters, digits and . _ - only."
        return name, None, f"recipe={name} names the run folder. {hint}"
    return path.stem, path, None
