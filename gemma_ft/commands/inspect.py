"""`inspect`: the data of a run as the model will see it."""

import io
import sys
from pathlib import Path

from gemma_ft.commands.arguments import CommandParser
from gemma_ft.errors import ConfigError

_DOCTYPE = b"<!doctype html>"


def run(argv: list[str]) -> int:
    """Print sampled rows with their loss mask and the totals; with --html, write them as a page too."""
    arguments = build_parser().parse_intermixed_args(argv)
    if arguments.rows < 0:
        raise ConfigError(f"--rows={arguments.rows} must not be negative. Give 0 for the totals alone.")
    if arguments.html is not None:
        check_page(arguments.html)

    from gemma_ft.config.compose import compose
    from gemma_ft.inspection.ink import Ink
    from gemma_ft.inspection.survey import inspect
    from gemma_ft.inspection.terminal import render

    config = compose(*arguments.overrides, config_dir=arguments.config_dir)
    survey = inspect(config, rows=arguments.rows)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # data may hold what the stream cannot print
    if sys.stdout is not None:
        print(render(survey, Ink.of(sys.stdout)))
    if arguments.html is not None:
        from gemma_ft.inspection.page import write_page

        write_page(survey, Path(arguments.html).expanduser())
        print(f"\npage: {arguments.html}")
    return 0


def build_parser() -> CommandParser:
    """Build the command's arguments."""
    parser = CommandParser(
        prog="inspect",
        description="Show what a run would train on: rows as tokens with what is learned of them, and totals "
        "over all rows. Loads the tokenizer, never the model, and writes no run folder.",
        epilog="example: python -m gemma_ft inspect recipe=quickstart --rows 3 --html page.html",
    )
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="recipe=NAME, group=OPTION or a key, as for train",
    )
    add("--rows", type=int, default=5, metavar="N", help="rows to show token by token (5)")
    add("--html", metavar="FILE", help="write the same as one page for a browser, with plots")
    add("--config-dir", "-cd", metavar="DIR", help="folder of your own recipes/ and groups, like model/")
    return parser


def check_page(path: str) -> None:
    """Refuse a file that no page can be written to, before anything is read.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        fault = _page_fault(Path(path).expanduser())
    except OSError as error:
        fault = f"cannot be written ({error.strerror}). Name another place."
    except RuntimeError:  # what expanduser raises
        fault = "begins with the home folder of nobody here. Name another place."
    if fault:
        raise ConfigError(f"--html={path} {fault}")


def _page_fault(page: Path) -> str | None:
    if not page.name:
        return "names no file. Write e.g. --html=page.html."
    if page.is_dir():
        return f"is a folder. Name a file in it, e.g. --html={page / 'page.html'}."
    if page.parent.is_file():
        return f"is in {page.parent}, which is no folder. Name another place."
    if not page.parent.is_dir():
        return f"is in a folder that does not exist. Make {page.parent} first."
    if page.exists() and not page.is_file():
        return "is no ordinary file. Name another one."
    if page.exists() and not _is_page(page):
        return "is a file already, and no web page. Name another one, so that nothing of yours is lost."
    return None


def _is_page(file: Path) -> bool:
    """Tell an older page, or an empty file, from the data that somebody named by mistake."""
    with file.open("rb") as stream:
        beginning = stream.read(len(_DOCTYPE))
    return beginning.lower() in (_DOCTYPE, b"")
