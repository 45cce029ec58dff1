"""`export RUN`: adapter and base become one checkpoint."""

from gemma_ft.commands.arguments import CommandParser


def run(argv: list[str]) -> int:
    """Export a trained run and print where it is."""
    arguments = build_parser().parse_args(argv)

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
