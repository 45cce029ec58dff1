"""`export RUN`: adapter and base become one checkpoint."""

from gemma_ft.commands.arguments import CommandParser

_ALLOWED = ("export", "export.", "model.path=", "model.revision=")


def run(argv: list[str]) -> int:
    """Export a trained run and print where it is."""
    arguments = build_parser().parse_args(argv)
    _check_overrides(arguments.overrides)

    from gemma_ft.exporting.run import export

    print(export(arguments.run, *arguments.overrides))
    return 0


def build_parser() -> CommandParser:
    """Build the command's arguments."""
    parser = CommandParser(
        prog="export",
        description="Merge what a run has trained into its base: a checkpoint that loads anywhere.",
        epilog="example: python -m gemma_ft export outputs/quickstart export.max_shard_size=2GB",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, wherever it is now")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="export.* keys; model.path=... where the base has moved",
    )
    return parser


def _check_overrides(overrides: list[str]) -> None:
    from gemma_ft.errors import ConfigError

    problems = [
        f"{word} cannot change a run that is trained. Only export.* and model.path can be given here."
        for word in overrides
        if not word.startswith(_ALLOWED)
    ]
    if problems:
        raise ConfigError(*problems)
