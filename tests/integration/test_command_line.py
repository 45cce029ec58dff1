"""The command line as a user meets it: in a process of its own, timed, and with its imports counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "numpy"}

FAKE_TRAINING = """
import sys, types
room = types.ModuleType("gemma_ft.training.run")
def train(config, *, overwrite=False, extend=False):
    from gemma_ft.runs import RunFolder
    print("trained", config.name)
    return RunFolder(config.output_dir)
room.train = train
sys.modules["gemma_ft.training.run"] = room
"""
TELL_MODULES = """
import sys, json
from gemma_ft.cli import main
code = main(sys.argv[1:])
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
sys.exit(code)
"""


def run(words, folder, *, code=None):
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "gemma_ft"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0"}
    return subprocess.run([*start, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)


def loaded(words, folder):
    return set(json.loads(run(words, folder, code=TELL_MODULES).stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], ["recipes"], ["recipes", "--json"], ["train", "--help"]]
)
def test_help_and_recipes_load_neither_hydra_nor_torch(words, tmp_path):
    assert loaded(words, tmp_path) & (HEAVY | {"hydra", "omegaconf", "yaml"}) == set()


@pytest.mark.parametrize(
    "words", [["modle=tiny"], ["recipe=quickstart", "adapter=none"], ["recipe=quickstart", "--cfg", "job"]]
)
def test_a_config_error_loads_no_torch(words, tmp_path):
    assert loaded(words, tmp_path) & HEAVY == set()


@pytest.mark.parametrize("command", ["export", "generate"])
def test_the_help_of_a_command_loads_no_torch(command, tmp_path):
    assert loaded([command, "--help"], tmp_path) & HEAVY == set()


def test_an_error_shows_no_traceback_even_where_hydra_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done = run(["modle=tiny", "trainer.max_steps=[", "adapter=null"], tmp_path)

    assert done.returncode == 2
    assert [line.split("=")[0] for line in done.stderr.splitlines()] == [
        "error: modle",
        "error: trainer.max_steps",
        "error: adapter",
    ]
    assert done.stdout == ""


def test_the_program_works_from_any_folder_and_leaves_it_clean(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - override /model: tiny\n  - override /dataset: chatterbot\n"
    )
    done = run(["recipe=mine.yaml", "--cfg", "job"], tmp_path)

    assert done.returncode == 0, done.stderr
    assert "name: mine" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_sweep_runs_in_a_process_of_its_own(tmp_path):
    code = FAKE_TRAINING + "from gemma_ft.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = run(["-m", "recipe=quickstart", "trainer.learning_rate=1e-3,5e-3"], tmp_path, code=code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "trained quickstart-learning_rate_0.001",
        "trained quickstart-learning_rate_0.005",
    ]


def test_the_flags_of_hydra_reach_hydra(tmp_path):
    for words in (["--info", "recipe=quickstart"], ["--info", "defaults", "recipe=quickstart"]):
        done = run(words, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "| recipe/quickstart " in done.stdout
    assert "job_logging:" in run(["recipe=quickstart", "--cfg", "hydra"], tmp_path).stdout
    assert "Hydra" in run(["--hydra-help"], tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


def test_telemetry_is_off_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    code = (
        FAKE_TRAINING
        + "import os\n"
        + "room.train = lambda config, **_: print(os.environ['HF_HUB_DISABLE_TELEMETRY'])\n"
        + "from gemma_ft.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)

    assert run(["recipe=quickstart"], tmp_path, code=code).stdout == "1\n"
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    assert run(["recipe=quickstart"], tmp_path, code=code).stdout == "0\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "gemma_ft", "train", "--help"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_verbs_are_there_in_python_and_cost_nothing_until_used(tmp_path):
    code = (
        "import sys, gemma_ft\n"
        "assert not {'hydra', 'torch'} & set(sys.modules)\n"
        "print(gemma_ft.compose('recipe=quickstart').name)\n"
        "assert 'torch' not in sys.modules"
    )

    assert run([], tmp_path, code=code).stdout == "quickstart\n"
