"""Composing: groups, recipes, the order of who wins, and what a value may look like."""

import dataclasses

import pytest

from gemma_ft.config.catalog import GROUPS, default_choices, load_options, load_recipes, recipes_dir
from gemma_ft.config.compose import compose, config_yaml, load_config
from gemma_ft.config.export import ExportMethod
from gemma_ft.config.schema import AdapterMethod, QuantizationMethod, RunConfig
from gemma_ft.errors import ConfigError

RECIPES = [recipe.name for recipe in load_recipes()]
OPTIONS = [(group, name) for group, options in load_options().items() if group in GROUPS for name in options]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    return str(path)


def write_recipe(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_under_its_own_name(recipe):
    config = compose(f"recipe={recipe}")

    assert isinstance(config, RunConfig)
    assert (config.name, config.output_dir) == (recipe, f"outputs/{recipe}")


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_of_every_group_composes(group, name, rows):
    words = [f"{group}={name}"]
    if (group, name) == ("dataset", "local"):
        words.append(f"dataset.path={rows}")
    if (group, name) == ("dataset", "mixture"):
        words.append(f"dataset.mixture.mine.path={rows}")
    if (group, name) == ("adapter", "none"):
        words.append("quantization=none")

    assert isinstance(compose(*words), RunConfig)


def test_shipped_recipes_are_short_and_say_what_they_do():
    for recipe in load_recipes():
        lines = recipe.path.read_text().splitlines()
        assert lines[0] == "# @package _global_", recipe.path
        assert len(lines) <= 25, recipe.path
        assert recipe.description(), recipe.path


def test_every_option_says_what_it_is():
    assert [
        option.path
        for options in load_options().values()
        for option in options.values()
        if not option.description()
    ] == []


def test_default_choices_are_options_that_exist():
    assert all(name in load_options()[group] for group, name in default_choices().items())
    assert tuple(default_choices()) == GROUPS


def test_a_recipe_beats_the_defaults():
    assert compose().trainer.max_length == 2048
    assert compose("recipe=quickstart").trainer.max_length == 256


def test_a_command_line_value_beats_the_recipe_wherever_it_stands():
    assert compose("trainer.max_steps=3", "recipe=quickstart").trainer.max_steps == 3


def test_a_command_line_choice_beats_the_recipe():
    config = compose("recipe=quickstart", "model=gemma_2b", "adapter=none", "quantization=none")

    assert config.model.path == "google/gemma-2b"
    assert config.adapter.method is AdapterMethod.none


def test_composing_twice_in_one_process_does_not_mix():
    first = compose("recipe=quickstart", "adapter=dora", "trainer.extra.adam_beta2=0.9")
    second = compose("recipe=quickstart")

    assert first.adapter.dora
    assert not second.adapter.dora
    assert second.trainer.extra == {}


def test_composing_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose("recipe=quickstart")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), "gemma_7b_it-ultrachat-qlora"),
        (("model=tiny", "quantization=int8"), "tiny-ultrachat-int8_lora"),
        (("model=tiny", "dataset=chatterbot", "quantization=none"), "tiny-chatterbot-lora"),
        (("model=tiny", "quantization=none", "adapter=none"), "tiny-ultrachat-full"),
        (("recipe=quickstart", "name=mine"), "mine"),
    ],
)
def test_a_run_is_named_after_its_recipe_or_what_it_is_made_of(words, name):
    config = compose(*words)

    assert (config.name, config.output_dir) == (name, f"outputs/{name}")


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("dataset.split=train[:5%]", "dataset.split", "train[:5%]"),
        ('dataset.split="train[:5%]"', "dataset.split", "train[:5%]"),
        ("model.revision=7e10234", "model.revision", "7e10234"),
        ("model.revision=0123", "model.revision", "0123"),
        ("model.revision=null", "model.revision", None),
        ("model.revision=none", "model.revision", None),
        ("name=007", "name", "007"),
        ("output_dir=a b=c (1)/x", "output_dir", "a b=c (1)/x"),
        (
            "trainer.sample_prompt=What is {x}, and why: [1]?",
            "trainer.sample_prompt",
            "What is {x}, and why: [1]?",
        ),
        ('trainer.sample_prompt=it\'s "so"', "trainer.sample_prompt", 'it\'s "so"'),
        ("trainer.eval_steps=none", "trainer.eval_steps", None),
        ("trainer.max_steps=1e3", "trainer.max_steps", 1000),
        ("trainer.packing=yes", "trainer.packing", True),
        ("+trainer.max_steps=5", "trainer.max_steps", 5),
        ("trainer.save_steps=${trainer.logging_steps}", "trainer.save_steps", 10),
        ("adapter.targets=q_proj", "adapter.targets", ("q_proj",)),
        ("adapter.targets=q_proj,v_proj", "adapter.targets", ("q_proj", "v_proj")),
        ("adapter.targets=[q_proj,v_proj]", "adapter.targets", ("q_proj", "v_proj")),
        ("trainer.extra.adam_beta2=0.95", "trainer.extra", {"adam_beta2": 0.95}),
        ("+trainer.extra.adam_beta2=0.95", "trainer.extra", {"adam_beta2": 0.95}),
        (
            "trainer.extra.lr_scheduler_kwargs={num_cycles: 2}",
            "trainer.extra",
            {"lr_scheduler_kwargs": {"num_cycles": 2}},
        ),
    ],
)
def test_values_mean_what_was_typed(word, key, value):
    found = compose("recipe=quickstart", word)
    for part in key.split("."):
        found = getattr(found, part)

    assert found == value
    assert type(found) is type(value)


def test_a_home_folder_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert compose("recipe=quickstart", "output_dir=~/runs/x").output_dir == str(tmp_path / "runs/x")


def test_ones_own_recipe_works_from_any_folder_without_a_package_line(tmp_path, monkeypatch):
    path = write_recipe(
        tmp_path / "far",
        "mine.yaml",
        "# Mine\ndefaults:\n  - override /model: tiny\ntrainer: {max_steps: 7}\n",
    )
    monkeypatch.chdir(tmp_path)
    config = compose(f"recipe={path}", "dataset=chatterbot")

    assert (config.name, config.model.path, config.trainer.max_steps) == ("mine", "bundled:tiny", 7)
    assert compose("recipe=far/mine.yaml") == compose(f"recipe={path}")


def test_ones_own_recipe_may_start_from_another_and_leave_out_override(tmp_path):
    write_recipe(
        tmp_path, "parent.yaml", "defaults:\n  - quickstart\ntrainer: {max_steps: 7, max_length: 64}\n"
    )
    path = write_recipe(
        tmp_path, "child.yaml", "defaults:\n  - parent\n  - adapter: dora\ntrainer: {max_steps: 9}\n"
    )
    config = compose(f"recipe={path}")

    assert (config.trainer.max_steps, config.trainer.max_length, config.trainer.learning_rate) == (
        9,
        64,
        5e-3,
    )
    assert config.adapter.dora


def test_a_copy_of_a_shipped_recipe_beats_the_shipped_one(tmp_path):
    text = (recipes_dir() / "quickstart.yaml").read_text().replace("max_steps: 150", "max_steps: 3")
    path = write_recipe(tmp_path, "quickstart.yaml", text)

    assert compose(f"recipe={path}").trainer.max_steps == 3
    assert compose("recipe=quickstart").trainer.max_steps == 150


@pytest.mark.parametrize("folder", ["recipe", "recipes"])
def test_a_config_dir_brings_recipes_and_options(tmp_path, folder):
    write_recipe(tmp_path / folder, "ours.yaml", "defaults:\n  - override /model: small\nseed: 5\n")
    write_recipe(tmp_path / "model", "small.yaml", "# Small\npath: google/gemma-2b\nrevision: abc\n")
    config = compose("recipe=ours", config_dir=str(tmp_path))

    assert (config.name, config.seed, config.model.path, config.model.revision) == (
        "ours",
        5,
        "google/gemma-2b",
        "abc",
    )
    with pytest.raises(ConfigError, match="recipe=ours is no recipe"):
        compose("recipe=ours")


def test_a_config_that_was_written_loads_back_equal(tmp_path):
    path = tmp_path / "config.yaml"
    config = compose(
        "recipe=quickstart", "trainer.extra.adam_beta2=0.9", "dataset.split=train[:5%]", "model.revision=1e5"
    )
    config.trainer.sample_prompt = "cost ${x}: 'a' \"b\"\nnext"
    path.write_text(config_yaml(config))

    assert load_config(path) == config
    assert "nf4" in path.read_text()


def test_a_loaded_config_takes_choices_and_keys_on_top(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(compose("recipe=quickstart", "export.max_shard_size=1GB", "adapter=dora")))

    assert load_config(path, "export=none").export.method is ExportMethod.none
    assert load_config(path, "export=none").export.max_shard_size == "1GB"
    assert load_config(path, "export.max_shard_size=2GB").export.max_shard_size == "2GB"
    assert not load_config(path, "adapter=lora").adapter.dora


def test_a_loaded_config_does_not_follow_todays_defaults(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    text = config_yaml(compose("recipe=quickstart")).replace("learning_rate: 0.005", "learning_rate: 0.007")
    path.write_text(text)

    assert load_config(path).trainer.learning_rate == 0.007


def test_a_loaded_config_needs_no_file_that_is_gone(tmp_path, rows):
    path = tmp_path / "config.yaml"
    path.write_text(
        config_yaml(compose("model=tiny", "dataset=local", f"dataset.path={rows}")).replace(
            rows, "gone.jsonl"
        )
    )

    assert load_config(path, "export=none").dataset.path == "gone.jsonl"


def test_wrong_words_on_a_loaded_config_are_told_alike(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(compose("recipe=quickstart")))

    with pytest.raises(
        ConfigError, match=r"export=merge is no option.*\nexport\.shard=2GB is no key"
    ) as caught:
        load_config(path, "export=merge", "export.shard=2GB")
    assert len(caught.value.problems) == 2


def test_a_runs_config_is_a_recipe_that_makes_the_same_run(tmp_path):
    run = tmp_path / "outputs" / "quickstart"
    config = compose("recipe=quickstart", "trainer.max_steps=9")
    path = write_recipe(run, "config.yaml", "# Run again\n" + config_yaml(config))

    assert compose(f"recipe={path}") == config
    changed = compose(f"recipe={path}", "name=other", "quantization=none")
    assert (changed.output_dir, changed.quantization.method) == ("outputs/other", QuantizationMethod.none)


def test_composing_inside_another_hydra_program_leaves_it_its_own():
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize(config_path=None, version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        compose("recipe=quickstart")
        assert GlobalHydra.instance().hydra is outer


def test_sections_are_plain_typed_dataclasses():
    config = compose("recipe=quickstart")

    assert all(dataclasses.is_dataclass(getattr(config, group)) for group in GROUPS)
    assert isinstance(config.quantization.method, QuantizationMethod)


@pytest.mark.parametrize("folder", ["Jos\u00e9", "p(1)", "a=b", "with space"])
def test_a_recipe_may_lie_in_a_folder_of_any_name(tmp_path, folder):
    path = tmp_path / folder / "9.yaml"
    path.parent.mkdir()
    path.write_text("defaults: [override /model: tiny]\ntrainer: {max_steps: 3}\ndataset: {path: x/y}\n")
    assert compose(f"recipe={path}").trainer.max_steps == 3


def test_no_recipe_can_be_said(tmp_path):
    assert compose("recipe=null", "model=tiny").name == "tiny-ultrachat-qlora"


def test_a_local_base_is_kept_by_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gemma"}')
    monkeypatch.chdir(tmp_path)
    assert compose("model.path=base").model.path == str(tmp_path / "base")


def test_half_a_run_config_is_not_filled_with_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match="is no config of a whole run"):
        load_config(tmp_path / "config.yaml")
