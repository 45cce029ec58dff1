"""Compose a run from conf/, a recipe and a command line: the only module that knows Hydra and OmegaConf."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from gemma_ft.config.catalog import GROUPS, RECIPE, Option, conf_dir
from gemma_ft.config.checks import check_config
from gemma_ft.config.deltas import check_delta, check_whole_run, is_whole_run
from gemma_ft.config.grammar import Grammar, Reading
from gemma_ft.config.naming import build_name, swept_values
from gemma_ft.config.schema import RunConfig
from gemma_ft.config.shelf import Shelf, accept
from gemma_ft.config.tidy import to_plain, to_tidy
from gemma_ft.config.words import Checked
from gemma_ft.errors import ConfigError

_PRIMARY, _HYDRA_VERSION = "config", "1.3"
_MOST_JOBS_CHECKED = 64


def compose(*overrides: str, config_dir: str | None = None) -> RunConfig:
    """Compose and check a run; nothing is written.

    Args:
        overrides: Words as on the command line: "recipe=quickstart", "trainer.max_steps=20".
        config_dir: Folder of one's own recipes and options, in the shape of conf/.

    Raises:
        ConfigError: With every problem of the words, the files they name and the config they make.
    """
    shelf = Shelf(config_dir, _read_yaml, _GRAMMAR)
    return _compose_checked(shelf.check(overrides), shelf)


def load_config(path: str | os.PathLike[str], *overrides: str) -> RunConfig:
    """Read a run folder's config.yaml as it is, and change what the words say.

    Only the words are checked: what the run was made with may be gone from this machine.

    Raises:
        ConfigError: With every problem of the file's keys and of the words.
    """
    check_whole_run(path, _read_yaml(Path(path)))
    shelf = Shelf(None, _read_yaml, _GRAMMAR)
    checked = shelf.check(overrides)
    with _one_line_errors(checked.problems):
        config = _apply(Path(path), checked, shelf)
    return accept(config, checked, typed_only=True)


def config_yaml(config: RunConfig, section: str | None = None) -> str:
    """Write a config, or one section of it, as YAML; `load_config` reads the whole back as an equal one."""
    plain = to_plain(config)
    if section is not None and not isinstance(plain.get(section), dict):
        raise ConfigError(f"--package={section} is no section of a run. Sections are {', '.join(GROUPS)}.")
    return OmegaConf.to_yaml(OmegaConf.create(plain if section is None else plain[section]))


def sweep(
    words: Sequence[str],
    task: Callable[[RunConfig], Any],
    *,
    flags: Sequence[str] = ("--multirun",),
    config_dir: str | None = None,
) -> None:
    """Hand a command line to Hydra itself: its sweepers, launchers and `--info` pages.

    Args:
        words: Overrides; several values of a key (a,b,c) are a sweep.
        task: Called once a job, in the launcher's process; what it returns is a sweeper's objective.
        flags: Hydra's own flags.
        config_dir: Folder of one's own recipes and options.

    Raises:
        ConfigError: With every problem of the words and of the first jobs, before any job begins.
    """
    shelf = Shelf(config_dir, _read_yaml, _GRAMMAR)
    checked = shelf.check(words, multirun="--multirun" in flags)
    if problems := checked.problems or _job_problems(checked, shelf):
        raise ConfigError(*problems)

    def job(cfg: DictConfig) -> Any:
        now = HydraConfig.get()
        swept = swept_values(now.overrides.task, checked, _GRAMMAR)
        config = _to_run_config(cfg, now.runtime.choices, swept)
        check_config(config)
        return task(config)

    _fill_store(shelf)
    _run_hydra_main(job, [*flags, *checked.words])


def _compose_checked(checked: Checked, shelf: Shelf) -> RunConfig:
    """Compose the good words, and raise the problems of the bad ones together with those of the result."""
    run_file = next((p for p in checked.recipe_files.values() if is_whole_run(_read_yaml(p))), None)
    with _one_line_errors(checked.problems):
        if run_file is not None:
            config = _apply(run_file, checked, shelf)
        else:
            with _hydra_at_hand(shelf):
                cfg = hydra.compose(_PRIMARY, checked.words, return_hydra_config=True)
            config = _to_run_config(cfg, cfg.hydra.runtime.choices)
    return accept(config, checked, typed_only=checked.choice_refused)


def _to_run_config(
    cfg: DictConfig, choices: Mapping[str, str | None], swept: Mapping[str, str] | None = None
) -> RunConfig:
    with open_dict(cfg):
        cfg.pop("hydra", None)
        cfg.name = build_name(cfg.name, choices, cfg.quantization.method, cfg.adapter.method, swept or {})
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)
    return to_tidy(config)


def _apply(path: Path, checked: Checked, shelf: Shelf) -> RunConfig:
    """Read a whole config and apply good words to it; a group's option replaces what its options set."""
    content, problems = check_delta(Option(group="", name="", path=path), _read_yaml(path), shelf.options)
    checked.problems += problems
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), content)
    assert isinstance(cfg, DictConfig)
    cfg.name = cfg.name or path.absolute().parent.name
    if cfg.output_dir == f"outputs/{cfg.name}":
        cfg.output_dir = RunConfig().output_dir  # follows a new name
    parsed = OverridesParser.create().parse_overrides(checked.words)
    for override in sorted(parsed, key=lambda o: o.key_or_group not in GROUPS):
        key, value = override.key_or_group, override.value()
        if key in GROUPS:
            files = [_read_yaml(option.path) for option in shelf.options[key].values()]
            fresh = OmegaConf.structured(RunConfig)[key]
            cleared = {name: fresh[name] for file in files for name in file}
            cfg[key] = OmegaConf.merge(cfg[key], cleared, _read_yaml(shelf.options[key][str(value)].path))
        elif key != RECIPE:
            OmegaConf.update(cfg, key, value, force_add=True)
    return _to_run_config(cfg, {})


def _job_problems(checked: Checked, shelf: Shelf) -> list[str]:
    """Compose the first jobs of a sweep, so that none begins where a later one cannot work."""
    with _hydra_at_hand(shelf):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        each = []
        for override in parser.parse_overrides(checked.words):
            if override.is_discrete_sweep():
                values = list(override.sweep_string_iterator())
                each.append([f"{override.get_key_element()}={value}" for value in values])
            elif not override.is_sweep_override():
                each.append([str(override.input_line)])
    problems: list[str] = []
    for words in islice(product(*each), _MOST_JOBS_CHECKED):
        try:
            _compose_checked(shelf.check(words), shelf)
        except ConfigError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def _run_hydra_main(job: Callable[[DictConfig], Any], arguments: Sequence[str]) -> None:
    argv, sys.argv = sys.argv, ["gemma_ft", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of ending the program
    GlobalHydra.instance().clear()
    try:
        with _one_line_errors():
            hydra.main(version_base=_HYDRA_VERSION, config_path=None, config_name=_PRIMARY)(job)()
    finally:
        sys.argv = argv


@contextmanager
def _one_line_errors(known: Sequence[str] = ()) -> Iterator[None]:
    """Turn what Hydra raises into a ConfigError; known problems are likely its cause, and said instead."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(*(known or [_one_line(error)])) from error


@contextmanager
def _hydra_at_hand(shelf: Shelf) -> Iterator[None]:
    """Set Hydra up with a shelf's files; a Hydra program that is calling us gets its own back."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    _fill_store(shelf)
    try:
        with hydra.initialize(config_path=None, version_base=_HYDRA_VERSION, job_name="gemma_ft"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _fill_store(shelf: Shelf) -> None:
    """Register every file with Hydra, in place of those of an earlier call."""
    store = ConfigStore.instance()
    for group in (*GROUPS, RECIPE):
        store.repo.pop(group, None)
    store.store("run_config", RunConfig)
    store.store(_PRIMARY, _read_yaml(conf_dir() / "config.yaml"))
    for option, content in shelf.contents():
        store.store(option.name, content, group=option.group, package=option.package())


def _read_yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}). Name a YAML file.") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: is not valid YAML. {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    lines = [str(error)]
    while isinstance(error.__cause__, (HydraException, OmegaConfBaseException)):
        error = error.__cause__
        lines.append(str(error))
    return re.sub(r"\s+", " ", " ".join(lines)).split(" See https://")[0].strip() or type(error).__name__


def _read_value(raw: str) -> Reading:
    try:
        value = OverridesParser.create().parse_override(f"key={raw}").value()
    except HydraException:
        return Reading(valid=False)
    if not isinstance(value, (Sweep, Glob)):
        return Reading(valid=True, values=(value,))
    if not isinstance(value, ChoiceSweep):
        return Reading(valid=True, swept=True)
    values = tuple(item.text if isinstance(item, QuotedString) else item for item in value.list)
    return Reading(valid=True, swept=True, simple=value.simple_form, values=values)


_GRAMMAR = Grammar(read=_read_value, quote=lambda text: QuotedString(text, Quote.single).with_quotes())
