"""What README, constraints and CI promise."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from gemma_ft.commands import doctor, export, generate, inspect, launch
from gemma_ft.commands.train import build_parser
from gemma_ft.config.compose import compose

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language):
    return [found for page in PAGES for found in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


LINES = [line for block in blocks("sh") for line in block.strip().splitlines()]
COMMANDS = [
    shlex.split(part.partition("-m gemma_ft")[2])
    for line in LINES
    for part in line.split("&&")
    if "-m gemma_ft" in part
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_readme_and_docs_is_one(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").write_text('{"text": "hello"}\n')
    Path("mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    match words:
        case ["export", *rest]:
            export.build_parser().parse_args(rest)
        case ["inspect", *rest]:
            arguments = inspect.build_parser().parse_intermixed_args(rest)
            assert compose(*arguments.overrides).name
        case ["generate", *rest]:
            generate.build_parser().parse_args(rest)
        case ["doctor", *rest]:
            doctor.build_parser().parse_args(rest)
        case ["launch", engine, *rest]:
            arguments = launch.build_parser(engine).parse_intermixed_args(rest)
            assert compose(*arguments.overrides).name
        case _:
            arguments = build_parser().parse_intermixed_args(words)
            swept = [word.partition(",")[0] for word in arguments.overrides]
            assert compose(*swept).name


@pytest.mark.parametrize("recipe", blocks("yaml"), ids=lambda recipe: recipe.splitlines()[1])
def test_every_recipe_of_readme_and_docs_composes(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").write_text('{"text": "hello"}\n')
    Path("mine.yaml").write_text(recipe)
    assert compose("recipe=./mine.yaml").name == "mine"


def test_the_readme_has_a_row_for_every_recipe_and_fits_its_page():
    rows = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert rows == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert README.count("\n") <= 150


def test_ci_does_what_the_readme_says_and_nothing_else():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    steps = [line for line in script if line and not line.startswith("#")]
    assert steps[:3] == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', "rm -rf .venv"]
    install, test = LINES[0], LINES[1]
    assert install.startswith(steps[3] + " && ")
    assert steps[4:] == [test]


def test_the_constraints_name_every_package_that_is_needed():
    pinned = dict(
        line.strip().lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    assert pinned["torch"] == "2.13.0"
    needed = {re.split(r"[\s<>=!;\[]", item)[0].lower().replace("_", "-") for item in requires("gemma_ft")}
    assert needed <= pinned.keys()


def test_the_lower_bounds_are_those_of_the_tested_set_or_below():
    from packaging.requirements import Requirement

    for item in map(Requirement, requires("gemma_ft")):
        assert item.specifier.contains(version(item.name), prereleases=True), item


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_the_code_is_kept(tool):
    done = subprocess.run(
        [sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
