"""Find the files of conf/ and recipes/: groups, their options and the recipes, each with its one line."""

import re
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path

from gemma_ft.config.schema import RunConfig

GROUPS = tuple(f.name for f in fields(RunConfig) if is_dataclass(f.default_factory))
"""The sections of a run that are chosen by name, in the order of `RunConfig`."""

RECIPE = "recipe"

_PACKAGE = Path(__file__).resolve().parent.parent
_HEADER = re.compile(r"#\s*@package\s+(\S+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One file that can be chosen: an option of a group, or a recipe."""

    group: str
    """Group of the option, `recipe` for a recipe; empty for the primary config."""
    name: str
    """What is typed after `group=`."""
    path: Path

    def description(self) -> str:
        """Return the file's first comment that is not a package header."""
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("#") and not _HEADER.match(line):
                    return line.lstrip("# ").strip()
                if line.strip() and not line.startswith("#"):
                    break
        return ""

    def package(self) -> str | None:
        """Return where the file's keys go, if it says so; a recipe's always go to the root."""
        if self.group in ("", RECIPE):
            return "_global_"
        with self.path.open(encoding="utf-8") as lines:
            header = _HEADER.match(lines.readline())
        return header.group(1) if header else None


def conf_dir() -> Path:
    """Return the folder of the groups."""
    return _shipped("conf")


def recipes_dir() -> Path:
    """Return the folder of the recipes."""
    return _shipped("recipes")


def load_options(config_dir: str | None = None) -> dict[str, dict[str, Option]]:
    """List every file that a command line can choose, by group and name.

    Args:
        config_dir: A user's folder in the shape of conf/, recipes in recipe/ or recipes/. Its files win.
    """
    found = {group: dict(options) for group, options in _shipped_options().items()}
    if config_dir is not None:
        root = Path(config_dir)
        for path in sorted(root.rglob("*.y*ml")):
            group = path.parent.relative_to(root).as_posix()
            if group != "." and path.suffix in (".yaml", ".yml"):
                _add(found, RECIPE if group == "recipes" else group, path)
    return found


def load_recipes(config_dir: str | None = None) -> list[Option]:
    """List the recipes by name."""
    return sorted(load_options(config_dir)[RECIPE].values(), key=lambda option: option.name)


def default_choices() -> dict[str, str]:
    """Return the option of each group that is taken where none is chosen."""
    text = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = dict(re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE))
    return {group: found[group] for group in GROUPS}


@cache
def _shipped_options() -> dict[str, dict[str, Option]]:
    found: dict[str, dict[str, Option]] = {group: {} for group in GROUPS}
    for path in sorted(conf_dir().glob("*/*.yaml")):
        _add(found, path.parent.name, path)
    for path in sorted(recipes_dir().glob("*.yaml")):
        _add(found, RECIPE, path)
    return found


def _add(found: dict[str, dict[str, Option]], group: str, path: Path) -> None:
    found.setdefault(group, {})[path.stem] = Option(group=group, name=path.stem, path=path)


def _shipped(folder: str) -> Path:
    """Return a data folder: inside the package in a wheel, beside it in a checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder
