"""`generate RUN "prompt"`: one answer."""

from gemma_ft.commands.arguments import CommandParser


def run(argv: list[str]) -> int:
    """Print a model's answer."""
    arguments = build_parser().parse_args(argv)

    from gemma_ft.evaluation.generate import generate

    print(
        generate(
            arguments.run,
            arguments.prompt,
            which=arguments.model,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            raw=arguments.raw,
        )
    )
    return 0


def build_parser() -> CommandParser:
    """Build the command's arguments."""
    parser = CommandParser(
        prog="generate",
        description="Answer one prompt with the model of a run, or with any Gemma checkpoint.",
        epilog='example: python -m gemma_ft generate outputs/quickstart "What is AI?" --model base',
    )
    parser.add_argument(
        "run", metavar="RUN", help="run folder, or a model: hub id, local folder, bundled:tiny"
    )
    parser.add_argument("prompt", help="what the user says")
    parser.add_argument(
        "--model",
        choices=("auto", "base", "adapter", "merged"),
        default="auto",
        help="which model of the run answers (default: merged if there is one, else adapter)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest token"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        default=None,
        help="go on with the prompt as plain text; a run that was trained on plain text does so anyway",
    )
    return parser
