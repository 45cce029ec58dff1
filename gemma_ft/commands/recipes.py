"""`recipes`: the list, a line each."""

import json

from gemma_ft.commands.arguments import CommandParser
from gemma_ft.config.catalog import load_recipes


def run(argv: list[str]) -> int:
    """Print the recipes with what each does."""
    arguments = build_parser().parse_args(argv)
    recipes = load_recipes(arguments.config_dir)
    if arguments.json:
        rows = [
            {"name": recipe.name, "description": recipe.description(), "path": str(recipe.path)}
            for recipe in recipes
        ]
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:{width}}  {recipe.description()}")
    return 0


def build_parser() -> CommandParser:
    """Build the command's arguments."""
    parser = CommandParser(
        prog="recipes",
        description="List the recipes. Train one with: python -m gemma_ft recipe=NAME",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of name, description and path")
    parser.add_argument("--config-dir", metavar="DIR", help="folder with recipes of your own, listed too")
    return parser
