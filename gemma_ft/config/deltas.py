"""Check the keys of a recipe or option file, and put its defaults list into the one form that Hydra takes."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from gemma_ft.config.catalog import GROUPS, RECIPE, Option
from gemma_ft.config.choices import Options, unknown_choice
from gemma_ft.config.keys import advice, fit, is_section, key_type
from gemma_ft.errors import ConfigError

_DISCRIMINATOR = "method"


def check_delta(option: Option, content: Any, options: Options) -> tuple[dict[str, Any], list[str]]:
    """Check a file that sets keys of a run.

    Args:
        option: The recipe or group option.
        content: What its YAML says.
        options: Every option by group and name.

    Returns:
        The content with values in the form their keys take, and one line for each thing that cannot work.
    """
    if not isinstance(content, Mapping):
        return {}, [f"{option.path}: holds no keys. Write `key: value` lines."]
    problems: list[str] = []
    package = option.package()
    prefix = "" if package == "_global_" else f"{package or option.group}."
    body = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    is_recipe = option.group == RECIPE and not is_whole_run(content)
    checked = dict(_check_section(body, prefix, problems, is_recipe=is_recipe))
    if "hydra" in content:
        checked["hydra"] = content["hydra"]
    if content.get("defaults"):
        checked["defaults"] = list(_defaults(content["defaults"], option.group, options, problems))
    return checked, [f"{option.path}: {problem}" for problem in problems]


def named_in_defaults(content: Any, group: str) -> list[tuple[str, str]]:
    """List the files that a file starts from, as group and name.

    Args:
        content: What its YAML says.
        group: The group that it belongs to; a bare name in the list is of the same one.
    """
    entries = content.get("defaults") if isinstance(content, Mapping) else None
    named = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, str) and entry != "_self_":
            named.append((group, entry))
        elif isinstance(entry, Mapping):
            named += [(_group_of(said), str(name)) for said, name in entry.items()]
    return named


def is_whole_run(content: Any) -> bool:
    """Tell a run folder's config.yaml, which leaves nothing to the defaults, from a recipe."""
    return isinstance(content, Mapping) and all(isinstance(content.get(group), Mapping) for group in GROUPS)


def check_whole_run(path: str | os.PathLike[str], content: Any) -> None:
    """Refuse a config.yaml that the defaults would have to complete.

    Raises:
        ConfigError: It lacks a section.
    """
    if not is_whole_run(content):
        raise ConfigError(f"{path} is no config of a whole run. Restore it, or train again.")


def _group_of(said: Any) -> str:
    return str(said).removeprefix("override ").strip().lstrip("/")


def _check_section(
    section: Mapping[Any, Any], prefix: str, problems: list[str], *, is_recipe: bool
) -> Iterable[tuple[str, Any]]:
    for name, value in section.items():
        key = f"{prefix}{name}"
        if key in GROUPS and not isinstance(value, Mapping):
            problems.append(_misplaced_choice(key, value))
        elif key in GROUPS or (is_section(key) and isinstance(value, Mapping)):
            yield name, dict(_check_section(value, f"{key}.", problems, is_recipe=is_recipe))
        elif "." in str(name):
            problems.append(
                f"{key} joins keys by dots, which a file does not read. Write one key inside the other."
            )
        elif key_type(key) is None:
            problems.append(f"{key} is no key of a run. {advice(key)}")
        elif is_recipe and key.endswith("." + _DISCRIMINATOR):
            problems.append(_misplaced_choice(key.partition(".")[0], value))
        else:
            try:
                yield name, fit(key, value)
            except ValueError as error:
                problems.append(f"{key}={'null' if value is None else value} {error}")


def _misplaced_choice(group: str, value: Any) -> str:
    name = "none" if value is None else value
    return f"{group}={name} is a choice. Put `- override /{group}: {name}` into the defaults list at the top."


def _defaults(entries: Any, group: str, options: Options, problems: list[str]) -> Iterable[Any]:
    if not isinstance(entries, list):
        problems.append("defaults is no list. Write lines like `- override /model: gemma_2b_it`.")
        return
    for entry in entries:
        if isinstance(entry, str):
            if group == RECIPE and entry != "_self_" and entry not in options[RECIPE]:
                problems.append(unknown_choice(f"defaults: {entry}", RECIPE, entry, options))
            else:
                yield entry
            continue
        for said, name in entry.items() if isinstance(entry, Mapping) else ():
            chosen = _group_of(said)
            if chosen in GROUPS and name not in options[chosen]:
                problems.append(unknown_choice(f"defaults: {chosen}={name}", chosen, str(name), options))
            elif chosen in GROUPS:
                yield {f"override /{chosen}": name}
            elif chosen.startswith("hydra/"):
                yield {said: name}
            else:
                problems.append(f"defaults: {chosen} is no group. Groups are {', '.join(GROUPS)}.")
