"""The command line: one table of commands, one-line errors, exit codes."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from gemma_ft import secrets, stopping
from gemma_ft.errors import GemmaFTError, Interrupted

_COMMANDS = {
    "train": "run a recipe; the same line again continues an unfinished run (the default)",
    "inspect": "show the data as the model will see it: tokens, loss mask, lengths, what is left out",
    "export": "merge what a run trained into its base: a checkpoint that loads anywhere",
    "generate": "answer a prompt with a run's base, adapter or merged model",
    "launch": "write the file that a cluster (Slurm, SkyPilot, Kubernetes, Ray) runs a recipe from",
    "doctor": "say what this machine can run, what is missing, and the command that mends it",
    "recipes": "list the recipes",
}

_EXAMPLES = """\
  python -m gemma_ft recipe=quickstart                      the whole path on a CPU, offline
  python -m gemma_ft recipe=ultrachat_qlora trainer.max_steps=200 adapter.rank=16
  python -m gemma_ft model=gemma_2b_it dataset=local dataset.path=my.jsonl
  python -m gemma_ft recipe=./mine.yaml --cfg job           print the config that would run
  python -m gemma_ft --multirun recipe=quickstart trainer.learning_rate=1e-3,5e-3
  python -m gemma_ft inspect recipe=quickstart --html page.html   what would be trained on
  python -m gemma_ft recipe=ultrachat_full parallel=fsdp    a shard of the model on every GPU of this machine
  python -m gemma_ft launch slurm --nodes 2 --gpus 8 recipe=ultrachat_full parallel=fsdp
  python -m gemma_ft export outputs/quickstart
  python -m gemma_ft generate outputs/quickstart "What is AI?" """

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after the program's name; None takes those of this process.

    Returns:
        0, or the exit code of what went wrong: 2 for what the user can mend, 1 for a run that failed.
    """
    code = _main(sys.argv[1:] if argv is None else list(argv))
    if code and _among_processes():
        # what holds their connections could wait for ever for processes that have left
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def _main(words: list[str]) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's large tensors in huge pages, on Linux
    sys.excepthook = secrets.print_traceback
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        with secrets.kept_out_of_logs():
            code = _dispatch(words)
        sys.stdout.flush()
        return code
    except GemmaFTError as error:
        _print_error(error)
        return error.exit_code
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # the terminal may be gone, which is why it stops
                print(
                    f"interrupted: {stop.reason}. The same line again goes on.", file=sys.stderr, flush=True
                )
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return _BROKEN_PIPE
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        print(f"error: the output cannot be written ({error.strerror}).", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as end:  # argparse ends a --help page like this
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ModuleNotFoundError as error:
        package = (error.name or "gemma_ft").partition(".")[0]
        if package == "gemma_ft" or _among_processes():
            raise
        cure = "`python -m gemma_ft doctor` says what to install."
        print(f"error: the Python package {package} is missing. {cure}", file=sys.stderr)
        return 2
    except Exception:
        if not _among_processes():
            raise
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1


def _among_processes() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else "--help"
    if first in ("--help", "-h", "help"):
        print(_help_page())
        return 0
    if first == "--version":
        from gemma_ft import __version__

        print(f"gemma_ft {__version__}")
        return 0
    if first in _COMMANDS:
        return _run(first, words[1:])
    if "=" not in first and first[:1] not in ("-", "+", "~"):
        raise _unknown_command(first)
    return _run("train", words)


def _run(command: str, words: list[str]) -> int:
    with _log_shown(), stopping.listen():
        code: int = import_module(f"gemma_ft.commands.{command}").run(words)
    return code


def _unknown_command(word: str) -> GemmaFTError:
    from difflib import get_close_matches

    from gemma_ft.config.catalog import load_recipes
    from gemma_ft.errors import ConfigError

    if word in [recipe.name for recipe in load_recipes()]:
        return ConfigError(f"{word} is a recipe, not a command. Type recipe={word}.")
    near = get_close_matches(word, _COMMANDS, 1)
    hint = f"Did you mean {near[0]}?" if near else f"Commands are {', '.join(_COMMANDS)}."
    return ConfigError(f"{word} is no command. {hint}")


def _print_error(error: GemmaFTError) -> None:
    if (error.exit_code == 2 or error.alike) and os.environ.get("RANK", "0") != "0":
        return  # every process of a launch meets the same mistake; one tells it
    for line in secrets.redact(str(error)).splitlines():
        print(f"error: {line}", file=sys.stderr)


@contextmanager
def _log_shown() -> Iterator[None]:
    """Print our own log lines to stderr for as long as a command runs."""
    log = logging.getLogger("gemma_ft")
    level, handler = log.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _help_page() -> str:
    from gemma_ft import __version__
    from gemma_ft.config.catalog import GROUPS, default_choices, load_options, load_recipes

    options, defaults = load_options(), default_choices()
    page = [
        f"gemma_ft {__version__}: fine-tune Gemma; a recipe becomes a merged checkpoint",
        "",
        "usage: python -m gemma_ft [COMMAND] [key=value ...] [--flag ...]",
        "",
        "commands (COMMAND --help says more; train --help lists every key):",
        *(f"  {name:10} {words}" for name, words in _COMMANDS.items()),
        "",
        "recipes (recipe=NAME, or recipe=path/to/your.yaml):",
        *(f"  {recipe.name:22} {recipe.description()}" for recipe in load_recipes()),
        "",
        "groups (group=option; * is taken where nothing is said):",
        *(_group_lines(group, list(options[group]), defaults[group]) for group in GROUPS),
        "",
        "examples:",
        _EXAMPLES.rstrip(),
    ]
    return "\n".join(page)


def _group_lines(group: str, names: list[str], default: str) -> str:
    from textwrap import fill

    listed = " ".join(name + "*" * (name == default) for name in names)
    return fill(listed, 100, initial_indent=f"  {group:14} ", subsequent_indent=" " * 17)
