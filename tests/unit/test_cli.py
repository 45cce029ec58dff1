"""The command line in this process: dispatch, help, errors and exit codes."""

import json
import logging
import os
import subprocess
import sys
import types

import pytest

from gemma_ft import __version__, cli
from gemma_ft.commands import inspect
from gemma_ft.config.catalog import load_options, load_recipes
from gemma_ft.config.keys import key_types
from gemma_ft.errors import ConfigError, ExportError
from gemma_ft.runs import RunFolder


@pytest.fixture
def trained(monkeypatch):
    """Stand in for the training room; holds the (config, overwrite) of each run."""
    runs = []
    room = types.ModuleType("gemma_ft.training.run")

    def train(config, *, overwrite=False, extend=False):
        runs.append((config, overwrite))
        return RunFolder(config.output_dir)

    room.train = train
    monkeypatch.setitem(sys.modules, "gemma_ft.training.run", room)
    return runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_overrides_without_a_command_train(trained, here):
    assert cli.main(["recipe=quickstart", "trainer.max_steps=3"]) == 0
    assert cli.main(["train", "--overwrite", "recipe=quickstart"]) == 0

    assert [(config.trainer.max_steps, overwrite) for config, overwrite in trained] == [
        (3, False),
        (150, True),
    ]
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_commands_recipes_and_groups(argv, capsys):
    assert cli.main(argv) == 0
    page = capsys.readouterr().out

    for name in (*cli._COMMANDS, *(recipe.name for recipe in load_recipes())):
        assert name in page
    for group, options in load_options().items():
        assert group in page
        assert all(name in page for name in options)
    assert "gemma_7b_it*" in page
    assert max(map(len, page.splitlines())) <= 110


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gemma_ft {__version__}\n"


@pytest.mark.parametrize("command", list(cli._COMMANDS))
def test_every_command_has_a_help_page(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


def test_the_help_of_train_lists_every_key_with_its_default(capsys):
    assert cli.main(["recipe=quickstart", "--help"]) == 0
    page = capsys.readouterr().out

    assert all(f"  {key}  (" in page for key in key_types())
    assert "trainer.max_length  (integer; 2048)" in page
    assert "Longest sequence in tokens" in page
    assert "quantization=nf4" in page


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian", "recipe=quickstart"], "error: trian is no command. Did you mean train?"),
        (["zzz"], "error: zzz is no command. Commands are train, inspect, export, generate, launch, "),
        (["doctor", "x=1"], "error: x=1 is nothing that this command takes. `python -m gemma_ft doctor"),
        (["quickstart"], "error: quickstart is a recipe, not a command. Type recipe=quickstart."),
        (["lr=1"], "error: lr=1 is no key of a run. Type trainer.learning_rate=1."),
        (
            ["--overwite", "recipe=quickstart"],
            "error: --overwite is no flag of this command. Did you mean --overwrite?",
        ),
        (["recipe=quickstart", "generate"], "error: generate is no key=value."),
        (["recipe=quickstart", "--config-dir", "nowhere"], "error: --config-dir=nowhere is no folder."),
        (
            ["recipe=quickstart", "--cfg", "job", "-p", "modl"],
            "error: --package=modl is no section of a run.",
        ),
        (
            ["recipe=quickstart", "hydra/launcher=zzz", "-m"],
            "error: In 'hydra/config': Could not find 'hydra/launcher/zzz'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, line, capsys, trained, here):
    assert cli.main(argv) == 2
    told = capsys.readouterr()

    assert told.err.startswith(line) or line in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert trained == []
    assert list(here.iterdir()) == []


def test_every_problem_has_its_own_error_line(capsys):
    assert cli.main(["lr=1", "epochs=2"]) == 2
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["error: ", "error: "]


def test_one_process_of_a_launch_tells_the_mistake(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    assert cli.main(["lr=1"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ExportError("no space left"), 1, "error: no space left\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_stops_a_run_sets_the_exit_code(error, code, told, monkeypatch, capsys, trained, here):
    def stop(config, *, overwrite, extend):
        raise error

    monkeypatch.setattr(sys.modules["gemma_ft.training.run"], "train", stop)

    assert cli.main(["recipe=quickstart"]) == code
    assert capsys.readouterr().err == told


def test_our_log_is_shown_while_a_command_runs_and_not_after(monkeypatch, capsys, trained, here):
    log = logging.getLogger("gemma_ft")

    def tell(config, *, overwrite, extend):
        log.info("step 1")
        return RunFolder(config.output_dir)

    monkeypatch.setattr(sys.modules["gemma_ft.training.run"], "train", tell)

    assert cli.main(["recipe=quickstart"]) == 0
    log.info("later")
    assert capsys.readouterr().err == "step 1\n"


def test_recipes_are_listed_and_as_json(capsys):
    assert cli.main(["recipes"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert cli.main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert [row["name"] for row in rows] == [recipe.name for recipe in load_recipes()]
    assert all(set(row) == {"name", "description", "path"} and row["description"] for row in rows)


def test_cfg_job_prints_the_config_that_would_run(capsys, trained, here):
    from gemma_ft.config.compose import compose, load_config

    assert cli.main(["recipe=quickstart", "adapter=dora", "--cfg", "job"]) == 0
    (here / "config.yaml").write_text(capsys.readouterr().out)

    assert load_config(here / "config.yaml") == compose("recipe=quickstart", "adapter=dora")
    assert trained == []


def test_cfg_job_refuses_what_would_not_run(capsys):
    assert cli.main(["recipe=quickstart", "adapter=none", "--cfg", "job"]) == 2
    assert "quantization=nf4 freezes the weights" in capsys.readouterr().err


def test_cfg_job_can_show_one_section(capsys):
    assert cli.main(["recipe=quickstart", "--cfg", "job", "--package", "export"]) == 0
    assert capsys.readouterr().out == (
        "method: merged\nbase: trained\ncertificate: full\nmax_shard_size: 5GB\n"
        "formats: []\npush_to_hub: null\nprivate: true\n"
    )


def names(trained):
    return [config.name for config, _ in trained]


def test_multirun_names_each_job_after_what_is_swept(trained, here):
    assert cli.main(["--multirun", "recipe=quickstart", "trainer.learning_rate=1e-3,5e-3", "seed=7"]) == 0

    assert names(trained) == ["quickstart-learning_rate_0.001", "quickstart-learning_rate_0.005"]
    assert [config.output_dir for config, _ in trained] == [f"outputs/{name}" for name in names(trained)]
    assert [config.trainer.learning_rate for config, _ in trained] == [1e-3, 5e-3]
    assert {config.seed for config, _ in trained} == {7}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["recipe=quickstart,ultrachat_lora"], ["quickstart", "ultrachat_lora"]),
        (
            ["recipe=quickstart", "name=x", "trainer.packing=true,false"],
            ["x-packing_true", "x-packing_false"],
        ),
        (
            ["recipe=quickstart,ultrachat_lora", "name=x"],
            ["x-recipe_quickstart", "x-recipe_ultrachat_lora"],
        ),
        (
            ["model=tiny,gemma_2b", "dataset=chatterbot", "adapter=lora,dora"],
            [
                "tiny-chatterbot-qlora-adapter_lora",
                "tiny-chatterbot-qlora-adapter_dora",
                "gemma_2b-chatterbot-qlora-adapter_lora",
                "gemma_2b-chatterbot-qlora-adapter_dora",
            ],
        ),
        (
            ["recipe=quickstart", "trainer.max_steps=range(1,3)"],
            ["quickstart-max_steps_1", "quickstart-max_steps_2"],
        ),
        (
            ["recipe=quickstart", "dataset.split=train[:5%],train[5%:]"],
            ["quickstart-split_train_5_1607", "quickstart-split_train_5_8cfe"],
        ),
        (
            ["recipe=quotes_int8_lora", "model.revision=a/b,c", "dataset.revision=d"],
            ["quotes_int8_lora-revision_a_b", "quotes_int8_lora-revision_c"],
        ),
    ],
)
def test_multirun_job_names(words, expected, trained, here):
    assert cli.main(["-m", *words]) == 0
    assert names(trained) == expected


def test_multirun_over_all_recipes(trained, here):
    assert cli.main(["--multirun", "recipe=glob(*)", "--overwrite"]) == 0

    assert names(trained) == [recipe.name for recipe in load_recipes()]
    assert all(overwrite for _, overwrite in trained)


def test_multirun_over_all_recipes_forgets_those_of_an_earlier_call(trained, here):
    (here / "recipes").mkdir()
    (here / "recipes" / "old.yaml").write_text("defaults: [quickstart]\n")

    assert cli.main(["recipe=old", "--config-dir", str(here)]) == 0
    trained.clear()
    assert cli.main(["-m", "recipe=glob(*)"]) == 0
    assert "old" not in names(trained)


def test_multirun_over_ones_own_recipe_files(trained, here):
    for name, steps in (("a", 1), ("b", 2)):
        (here / f"{name}.yaml").write_text(f"defaults: [quickstart]\ntrainer: {{max_steps: {steps}}}\n")

    assert cli.main(["-m", "recipe=a.yaml,b.yaml"]) == 0
    assert [(config.name, config.trainer.max_steps) for config, _ in trained] == [("a", 1), ("b", 2)]


def test_multirun_litters_nothing(trained, here, monkeypatch):
    argv = list(sys.argv)

    assert cli.main(["-m", "recipe=quickstart", "seed=1,2"]) == 0
    assert [path.name for path in here.iterdir()] == ["outputs"]
    notes = [path.relative_to(here / "outputs").as_posix() for path in (here / "outputs").rglob("*")]
    assert sorted(notes) == [".multirun", ".multirun/multirun.yaml"]
    assert sys.argv == argv


def test_multirun_begins_no_job_where_another_cannot_work(trained, here, capsys):
    assert cli.main(["-m", "recipe=quickstart", "trainer.learning_rate=1e-3,-1"]) == 2

    assert capsys.readouterr().err.startswith("error: trainer.learning_rate=-1.0 must not be negative.")
    assert trained == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["recipe=quickstart", "seed=1,2", "output_dir=x"],
            "error: output_dir= is one folder for all jobs of a sweep.",
        ),
        (["recipe=quickstart,nope"], "error: recipe=nope is no recipe."),
        (
            ["recipe=quickstart", "trainer.max_steps=1,many"],
            "error: trainer.max_steps=many must be a whole number.",
        ),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(words, line, trained, here, capsys):
    assert cli.main(["-m", *words]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert trained == []


def test_a_job_that_fails_ends_in_one_error_line(trained, here, monkeypatch, capsys):
    def fail(config, *, overwrite, extend):
        raise ExportError("no space left")

    monkeypatch.setattr(sys.modules["gemma_ft.training.run"], "train", fail)

    assert cli.main(["-m", "recipe=quickstart", "seed=1,2"]) == 1
    told = capsys.readouterr().err
    assert "error: no space left\n" in told
    assert "Traceback" not in told


def test_a_sweep_is_not_asked_for_a_page_at_once(here, trained, capsys):
    assert cli.main(["-m", "recipe=quickstart", "seed=1,2", "--cfg", "job"]) == 2
    assert "--multirun trains" in capsys.readouterr().err
    assert trained == []


def test_an_empty_word_is_no_command(capsys):
    assert cli.main([""]) == 2
    assert "is no command" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_an_output_that_cannot_be_written_is_told_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gemma_ft", "recipes"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device).\n"


def test_a_package_that_is_missing_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "gemma_ft.commands.recipes", raising=False)
    monkeypatch.setitem(sys.modules, "gemma_ft.commands.recipes", None)  # ours: a mistake to be seen whole
    with pytest.raises(ModuleNotFoundError):
        cli.main(["recipes"])

    def need(words):
        raise ModuleNotFoundError("No module named 'hydra.core'", name="hydra.core")

    monkeypatch.setattr(cli, "_dispatch", need)
    assert cli.main(["recipes"]) == 2
    told = "error: the Python package hydra is missing. `python -m gemma_ft doctor` says what to install."
    assert capsys.readouterr().err.strip() == told


def test_a_closed_output_is_no_error():
    code = (
        "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'gemma_ft', 'recipes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_flags_are_called_flags():
    with pytest.raises(ConfigError) as caught:
        inspect.build_parser().parse_intermixed_args(["recipe=quickstart", "--cfg", "job"])
    assert [problem.split()[0] for problem in caught.value.problems] == ["--cfg"]
