"""The laws of the house: who may import whom, where Hydra stands, and how long a thing may be."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gemma_ft"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("cli",),
    ("commands",),
    ("diagnosis", "launching"),
    ("training",),
    ("exporting", "planning", "evaluation", "inspection"),
    ("modeling", "data", "runs"),
    ("hub", "cache"),
    ("config",),
    ("families", "locks", "secrets", "stopping"),
    ("errors",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ANYWHERE = {"__init__", "__main__"}  # the public page and the program's door

HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "safetensors",
    "tensorboard",
    "tokenizers",
    "torch",
    "trackio",
    "transformers",
    "trl",
    "wandb",
}
FORBIDDEN_NAMES = {"util", "utils", "common", "helper", "helpers", "base", "misc"}
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_MEDIAN = 50, 250, 15


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(tree):
    """Every imported module's full name; `from gemma_ft import hub` counts as gemma_ft.hub."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "gemma_ft":
                yield from (f"gemma_ft.{alias.name}" for alias in node.names)
            else:
                yield node.module


def upward_imports(path, tree):
    room = room_of(path)
    for name in imports_of(tree):
        if not name.startswith("gemma_ft."):
            continue
        target = name.split(".")[1]
        if target in LEVEL and target != room and LEVEL[target] <= LEVEL[room]:
            yield f"{path.relative_to(PACKAGE)} imports {name}"


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node):
    return node.end_lineno - node.lineno + 1


def test_every_module_belongs_to_a_room_of_the_table():
    assert {room_of(path) for path in MODULES} - ANYWHERE - set(LEVEL) == set()


def test_imports_point_down_only():
    paths = [path for path in MODULES if room_of(path) not in ANYWHERE]

    assert [line for path in paths for line in upward_imports(path, parse(path))] == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config/x.py", "from gemma_ft.data.sources.rows import Row"),
        ("exporting/x.py", "def f():\n    import gemma_ft.evaluation.generate"),
        ("families.py", "from gemma_ft import hub"),
    ],
)
def test_an_import_that_points_up_or_aside_is_seen(file, text):
    assert list(upward_imports(PACKAGE / file, ast.parse(text)))


def test_hydra_stands_in_one_module():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for name in imports_of(parse(path))
        if name.split(".")[0] in ("hydra", "omegaconf")
    }

    assert users == {"config/compose.py"}


def test_the_command_line_imports_nothing_heavy_at_its_start():
    doors = [path for path in MODULES if room_of(path) in ("cli", "commands", "config", "families", "errors")]
    at_start = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in doors
        for node in parse(path).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imports_of(node)
        if name.split(".")[0] in HEAVY
    ]

    assert at_start == []


def test_nothing_is_called_utils():
    names = {part.removesuffix(".py") for path in MODULES for part in path.relative_to(PACKAGE).parts}

    assert names & FORBIDDEN_NAMES == set()


def test_files_and_functions_are_short():
    files = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    functions = [
        (length(node), f"{path.name}: {node.name}") for path in MODULES for node in functions_of(parse(path))
    ]

    assert {name: lines for name, lines in files.items() if lines > LONGEST_FILE} == {}
    assert [entry for entry in functions if entry[0] > LONGEST_FUNCTION] == []
    assert sorted(functions)[len(functions) // 2][0] <= LONGEST_MEDIAN


def test_public_functions_and_classes_are_documented_and_typed():
    bare = []
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            where = f"{path.relative_to(PACKAGE)}: {node.name}"
            if ast.get_docstring(node) is None and not _is_inner(path, node):
                bare.append(f"{where} has no docstring")
            if isinstance(node, ast.FunctionDef) and node.returns is None:
                bare.append(f"{where} has no return type")

    assert bare == []


def _is_inner(path, node):
    """Tell whether a definition stands in a function or in a private class."""
    for outer in ast.walk(parse(path)):
        private = isinstance(outer, ast.ClassDef) and outer.name.startswith("_")
        if (private or isinstance(outer, ast.FunctionDef)) and outer.lineno < node.lineno <= outer.end_lineno:
            return True
    return False


def test_code_holds_no_open_points():
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")

    assert [path.name for path in MODULES for mark in marks if mark in path.read_text()] == []


def test_trust_remote_code_is_never_on_and_weights_are_safetensors():
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            if isinstance(node, ast.Attribute) and node.attr == "save" and isinstance(node.value, ast.Name):
                assert node.value.id != "torch", path
