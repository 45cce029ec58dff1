"""`train`, the default: overrides in, a trained run out; Hydra's flags go on to Hydra."""

import argparse
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from gemma_ft.commands.arguments import CommandParser
from gemma_ft.errors import ConfigError

if TYPE_CHECKING:
    from gemma_ft.config.schema import RunConfig

_INFO_PAGES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def run(argv: list[str]) -> int:
    """Train what the words say, or show what they compose to."""
    if "--help" in argv or "-h" in argv:
        print(_help_page())
        return 0
    arguments = build_parser().parse_intermixed_args(_complete_info(argv))

    from gemma_ft.config.compose import compose, config_yaml, sweep
    from gemma_ft.modeling.imports import unused_left_out

    train: Callable[[RunConfig], float | None] = partial(
        _train, overwrite=arguments.overwrite, extend=arguments.extend
    )
    if arguments.multirun and (arguments.cfg or arguments.info or arguments.hydra_help):
        raise ConfigError(
            "--multirun trains; it cannot be asked for a page at once. Take one of the two out."
        )
    flags = _hydra_flags(arguments)
    if flags:
        sweep(arguments.overrides, train, flags=flags, config_dir=arguments.config_dir)
    elif arguments.cfg == "job":
        config = compose(*arguments.overrides, config_dir=arguments.config_dir)
        print(config_yaml(config, arguments.package), end="")
    else:
        config = compose(*arguments.overrides, config_dir=arguments.config_dir)
        with unused_left_out(config):
            train(config)
    return 0


def build_parser() -> CommandParser:
    """Build the command's arguments."""
    parser = CommandParser(
        prog="train",
        description="Run a recipe: data, training, export. The same line again continues an unfinished run.",
        add_help=False,
    )
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="recipe=NAME, group=OPTION or a key of the list below",
    )
    add("--overwrite", action="store_true", help="move an existing run folder aside and start anew")
    add("--extend", action="store_true", help="train on for more steps, under a schedule stretched over them")
    add("--multirun", "-m", action="store_true", help="run every combination of values given as a,b,c")
    add("--cfg", "-c", choices=("job", "hydra", "all"), help="print the config that would run, and stop")
    add("--package", "-p", metavar="SECTION", help="with --cfg: only this section")
    add("--resolve", action="store_true", help="with --cfg hydra: resolve what refers to other keys")
    add("--config-dir", "-cd", metavar="DIR", help="folder of your own recipes/ and groups, like model/")
    add("--info", "-i", choices=_INFO_PAGES, help="print how Hydra composes the config")
    add("--hydra-help", action="store_true", help="print Hydra's help")
    add("--run", "-r", action="store_true", help="train, which is what happens anyway")
    add("--help", "-h", action="store_true", help="print this page")
    return parser


def _train(config: "RunConfig", *, overwrite: bool, extend: bool) -> float | None:
    """Train and return the held-out loss, which a sweeper may want to lower."""
    from gemma_ft.runs import RunFolder
    from gemma_ft.training.launch import launch, processes_to_launch
    from gemma_ft.training.run import train

    if processes := processes_to_launch(config):
        flags = {"--overwrite": overwrite, "--extend": extend}
        launch(config, processes, *(flag for flag, given in flags.items() if given))
    else:
        train(config, overwrite=overwrite, extend=extend)
    losses = RunFolder(config.output_dir).held_out_losses()
    return losses[-1] if losses else None


def _complete_info(argv: Iterable[str]) -> list[str]:
    """Write a bare `--info` out as `--info all`, so that it does not swallow the word after it."""
    words = list(argv)
    for index in reversed(range(len(words))):
        if words[index] in ("--info", "-i") and words[index + 1 : index + 2] not in [
            [p] for p in _INFO_PAGES
        ]:
            words.insert(index + 1, "all")
    return words


def _hydra_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the flags that make Hydra itself run the command line."""
    flags = []
    if arguments.multirun:
        flags.append("--multirun")
    if arguments.hydra_help:
        flags.append("--hydra-help")
    if arguments.info:
        flags += ["--info", arguments.info]
    if arguments.cfg in ("hydra", "all"):
        flags += ["--cfg", arguments.cfg]
        flags += ["--package", arguments.package] if arguments.package else []
        flags += ["--resolve"] if arguments.resolve else []
    return flags


def _help_page() -> str:
    from gemma_ft.config.catalog import default_choices, load_options
    from gemma_ft.config.docs import key_docs

    page = [build_parser().format_help(), "keys, with what they take and their default:"]
    for entry in key_docs():
        page.append(f"  {entry.key}  ({entry.type}; {entry.default})")
        page += textwrap.wrap(entry.doc, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    page.append("\ngroups and their options:")
    options, defaults = load_options(), default_choices()
    for group in defaults:
        for name, option in options[group].items():
            mark = " (default)" if name == defaults[group] else ""
            page.append(f"  {f'{group}={name}':32} {option.description()}{mark}")
    return "\n".join(page)
