"""The three ways to have the program: wheel, editable install (every other test), bare checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "gemma_ft" / "launching" / "templates"
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "checkout"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that Python imports gemma_ft from."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wheel":
        zipfile.ZipFile(request.getfixturevalue("wheel")).extractall(folder)
    else:
        for name in ("gemma_ft", "conf", "recipes"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(installed: Path, *words: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = "import gemma_ft, sys; sys.stderr.write(gemma_ft.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stderr.startswith(str(installed))
    done = subprocess.run(
        [sys.executable, "-m", "gemma_ft", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_knows_every_recipe_from_any_folder(installed, tmp_path):
    assert {
        recipe["name"] for recipe in json.loads(run(installed, "recipes", "--json", cwd=tmp_path))
    } == RECIPES
    assert "ultrachat_qlora" in run(installed, "--help", cwd=tmp_path)


def test_it_composes_a_recipe_from_any_folder(installed, tmp_path):
    config = run(installed, "recipe=ultrachat_qlora", "model=tiny", "--cfg", "job", cwd=tmp_path)
    assert "path: bundled:tiny" in config
    assert "name: ultrachat_qlora" in config


def test_the_wheel_holds_data_and_licence_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "gemma_ft/conf/config.yaml" in names
    assert "gemma_ft/chat_template.jinja" in names
    assert {"gemma_ft/inspection/page.html", "gemma_ft/inspection/page.css"} <= set(names)
    assert {f"gemma_ft/recipes/{recipe}.yaml" for recipe in RECIPES} <= set(names)
    templates = {f"gemma_ft/launching/templates/{path.name}" for path in TEMPLATES.iterdir()}
    assert templates <= set(names)
    assert "gemma_ft/launching/templates/slurm.sh" in templates
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "conf/", "recipes/")) for name in names)


def test_the_wheel_says_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode()
    assert "Requires-Python: >=3.11" in metadata
    assert "Requires-Dist: hydra-core<1.4,>=1.3" in metadata
    torch = next(line for line in metadata.splitlines() if line.startswith("Requires-Dist: torch"))
    assert "<" not in torch  # a Colab or GPU user keeps theirs
    scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "gemma-ft = gemma_ft.cli:main" in scripts
