"""`launch ENGINE`: a file that a cluster engine runs a recipe from."""

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.commands.arguments import CommandParser
from gemma_ft.errors import ConfigError

if TYPE_CHECKING:
    from gemma_ft.launching.job import Job

ENGINES = {
    "slurm": "a batch script, for `sbatch`",
    "skypilot": "a task of a managed job, for `sky jobs launch`",
    "kubernetes": "a JobSet, for `kubectl apply`",
    "ray": "a Ray Train program, for `ray job submit`",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flag:
    """What only some engines ask for."""

    name: str
    engines: tuple[str, ...]
    help: str
    example: str | None = None
    """A value; given where the engine cannot do without."""
    default: str | None = None


_FLAGS = (
    _Flag(name="--partition", engines=("slurm",), help="where to queue (the cluster's default)"),
    _Flag(name="--account", engines=("slurm",), help="who pays (the user's default)"),
    _Flag(name="--time", engines=("slurm",), help="time limit, like 12:00:00 (the partition's)"),
    _Flag(
        name="--python",
        engines=("slurm",),
        help="interpreter of the nodes (this one)",
        default=sys.executable,
    ),
    _Flag(name="--gpu-type", engines=("skypilot",), help="accelerator of SkyPilot", example="H100"),
    _Flag(name="--volume", engines=("skypilot",), help="volume that all nodes write to", example="shared"),
    _Flag(
        name="--claim", engines=("kubernetes",), help="volume claim that all pods write to", example="shared"
    ),
    _Flag(
        name="--image",
        engines=("skypilot", "kubernetes"),
        help="container image that holds gemma_ft",
        example="example/gemma-ft:1",
    ),
    _Flag(
        name="--python",
        engines=("skypilot", "kubernetes"),
        help="interpreter in the image (python)",
        default="python",
    ),
    _Flag(name="--shared-dir", engines=("ray",), help="folder that every node sees", example="/mnt/shared"),
)


def run(argv: list[str]) -> int:
    """Write the file, and say how it is submitted."""
    engine = argv[0] if argv else "--help"
    if engine in ("--help", "-h"):
        print(_help_page())
        return 0
    if engine not in ENGINES:
        raise ConfigError(
            f"{engine} is no engine. Name one of {', '.join(ENGINES)} first, e.g. {_example('slurm')}"
        )
    arguments = build_parser(engine).parse_intermixed_args(argv[1:])
    _check_needed(engine, arguments)

    from gemma_ft.config.compose import compose
    from gemma_ft.launching.job import build_job

    config = compose(*arguments.overrides, config_dir=arguments.config_dir)
    folder = [] if arguments.config_dir is None else ["--config-dir", arguments.config_dir]
    job = build_job(
        config,
        [*arguments.overrides, *folder],
        nodes=arguments.nodes,
        gpus=arguments.gpus,
        stop_seconds=arguments.stop_seconds,
        cpus=arguments.cpus,
        memory=arguments.memory,
    )
    print(_write(engine, job, arguments))
    return 0


def build_parser(engine: str) -> CommandParser:
    """Build the arguments that one engine takes."""
    parser = CommandParser(
        prog=f"launch {engine}",
        description=f"Write {ENGINES[engine]}, that runs a recipe on several machines. The recipe is checked "
        "first; nothing is submitted.",
        epilog=f"example: {_example(engine)}",
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="recipe=NAME, group=OPTION or a key, as for train")
    add("--nodes", type=int, metavar="N", help="machines (needed)")
    add("--gpus", type=int, metavar="M", help="GPUs of each machine, one process a GPU (needed)")
    for flag in _flags_of(engine):
        needed = " (needed)" if flag.example else ""
        add(flag.name, default=flag.default, metavar="TEXT", help=flag.help + needed)
    if engine == "skypilot":
        add("--spot", action="store_true", help="take machines that can be taken away, for less")
    add("--cpus", type=int, metavar="C", help="processors of each machine")
    add("--memory", type=int, metavar="GIB", help="memory of each machine, in GiB")
    seconds = "time to stop in: the rest of a step and a checkpoint (600)"
    add("--stop-seconds", type=int, default=600, metavar="S", help=seconds)
    add("--output", metavar="FILE", help="the file to write (named after the run, in this folder)")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--config-dir", "-cd", metavar="DIR", help="folder of your own recipes/ and groups, like model/")
    return parser


def _flags_of(engine: str) -> list[_Flag]:
    return [flag for flag in _FLAGS if engine in flag.engines]


def _value(arguments: argparse.Namespace, name: str) -> str | int | None:
    value: str | int | None = getattr(arguments, name[2:].replace("-", "_"))
    return value


def _check_needed(engine: str, arguments: argparse.Namespace) -> None:
    """Name every flag at once that the engine cannot do without, or that says nothing."""
    needed = ["--nodes", "--gpus", *(flag.name for flag in _flags_of(engine) if flag.example)]
    absent = [name for name in needed if _value(arguments, name) is None]
    if absent:
        raise ConfigError(f"launch {engine} needs {' and '.join(absent)} too, as in {_example(engine)}")
    empty = [flag.name for flag in _flags_of(engine) if str(_value(arguments, flag.name)).strip() == ""]
    if empty:
        raise ConfigError(*(f"{name}= is empty. Give it a value, or leave it out." for name in empty))


def _example(engine: str) -> str:
    flags = [f"{flag.name} {flag.example} " for flag in _flags_of(engine) if flag.example]
    words = f"--nodes 2 --gpus 8 {''.join(flags)}recipe=ultrachat_full parallel=fsdp"
    return f"python -m gemma_ft launch {engine} {words}"


def _write(engine: str, job: "Job", arguments: argparse.Namespace) -> str:
    """Write the file whole; return the line that tells of it."""
    from gemma_ft.runs.files import write_text

    author = import_module(f"gemma_ft.launching.{engine}")
    file = Path(arguments.output or f"{job.plain_name}{author.SUFFIX}").expanduser()
    _check_file(file, overwrite=arguments.overwrite)
    flags = {flag.name[2:].replace("-", "_"): _value(arguments, flag.name) for flag in _flags_of(engine)}
    if engine == "skypilot":
        flags["spot"] = arguments.spot
    text = author.render(job, file=str(file), **flags)
    try:
        write_text(file, text)
    except OSError as error:
        why = f"cannot be written ({error.strerror}). Name a file in another folder."
        raise ConfigError(f"--output={file} {why}") from error
    places = f" The nodes need {', '.join(job.places)} too." if job.places else ""
    submit = author.submit_command(job, str(file))
    return f"{file}: {job.processes} processes on {job.nodes} nodes.{places} Submit it: {submit}"


def _check_file(file: Path, *, overwrite: bool) -> None:
    if file.is_dir():
        raise ConfigError(f"--output={file} is a folder. Name a file in it.")
    if not file.parent.is_dir():
        raise ConfigError(f"--output={file} is in a folder that does not exist. Make {file.parent} first.")
    if file.exists() and not overwrite:
        raise ConfigError(f"--output={file} exists already. Add --overwrite, or name another file.")


def _help_page() -> str:
    lines = [f"  {name:12} {words}" for name, words in ENGINES.items()]
    return "\n".join(
        [
            "usage: python -m gemma_ft launch ENGINE --nodes N --gpus M [key=value ...] [--flag ...]",
            "",
            "Write a file that a cluster engine runs a recipe from. Nothing is submitted.",
            "",
            "engines (launch ENGINE --help lists its flags):",
            *lines,
            "",
            "examples:",
            *(f"  {_example(engine)}" for engine in ENGINES),
        ]
    )
