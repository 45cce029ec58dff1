"""Wrong words: each is told in one line with what to type, all of them at once."""

import pytest

from gemma_ft.config.compose import compose
from gemma_ft.errors import ConfigError


def problems_of(*words, **options):
    with pytest.raises(ConfigError) as caught:
        compose(*words, **options)
    return list(caught.value.problems)


def test_all_problems_of_a_line_come_at_once():
    found = problems_of(
        "modle=tiny",
        "trainer.lr=1e-3",
        "quantization=nf5",
        "trainer.packing=maybe",
        "trainer.warmup_steps=-1",
        "x",
    )

    assert [line.split(" ")[0] for line in found] == [
        "modle=tiny",
        "trainer.lr=1e-3",
        "quantization=nf5",
        "trainer.packing=maybe",
        "x",
        "trainer.warmup_steps=-1.0",
    ]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("trainer.learning_rte=1", "Type trainer.learning_rate=1."),
        ("learning_rate=1e-4", "Type trainer.learning_rate=1e-4."),
        ("trainer.rank=8", "Type adapter.rank=8."),
        ("lr=1", "Type trainer.learning_rate=1."),
        ("trainer.lr=1", "Type trainer.learning_rate=1."),
        ("lora_r=8", "Type adapter.rank=8."),
        ("r=8", "Type adapter.rank=8."),
        ("lora_alpha=8", "Type adapter.alpha=8."),
        ("batch_size=8", "Type trainer.global_batch_size=8."),
        ("per_device_train_batch_size=2", "Type trainer.micro_batch_size=2."),
        ("epochs=3", "Type trainer.num_train_epochs=3."),
        ("max_seq_length=512", "Type trainer.max_length=512."),
        ("model_name_or_path=a/b", "Type model.path=a/b."),
        ("dataset_name=a/b", "Type dataset.path=a/b."),
        ("load_in_4bit=true", "Type quantization=nf4."),
        (
            "gradient_accumulation_steps=4",
            "It is derived: set trainer.global_batch_size and trainer.micro_batch_size.",
        ),
        ("bf16=true", "Type model.dtype=bf16."),
        ("output=x", "Type output_dir=x."),
        ("output-dir=x", "Type output_dir=x."),
        ("path=x", "Type model.path=x or dataset.path=x or adapter.path=x."),
        ("recepi=quickstart", "Type recipe=quickstart."),
        ("quantisation=int8", "Type quantization=int8."),
        ("zzz.qqq=1", "`python -m gemma_ft train --help` lists every key."),
    ],
)
def test_an_unknown_key_is_answered_with_what_to_type(word, answer):
    assert problems_of(word) == [f"{word} is no key of a run. {answer}"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("adapter=null", r"adapter=null is not how a choice is switched off\. Type adapter=none\."),
        (
            "adapter=lroa",
            r"adapter=lroa is no option of adapter\. Did you mean adapter=lora\? Choose one of dora, lora",
        ),
        ("model=google/gemma-2b-it", r"is no option of model\. Type model\.path=google/gemma-2b-it\."),
        ("dataset=my.jsonl", r"is no option of dataset\. Type dataset=local dataset\.path=my\.jsonl\."),
        ("dataset=a/b", r"Type dataset\.source=hub dataset\.path=a/b dataset\.split=train\."),
        (
            "recipe=quikstart",
            r"recipe=quikstart is no recipe\. Did you mean recipe=quickstart\? Choose one of",
        ),
        (
            "recipe=far/quickstart.yaml",
            r"recipe=far/quickstart\.yaml is no file\. Did you mean recipe=quickstart\?",
        ),
        ("adapter=lora,dora", r"adapter=lora,dora names several\. Add --multirun"),
        ("adapter", r"adapter has no value\. Type adapter=VALUE\."),
        ("~trainer.max_steps", r"~trainer\.max_steps cannot take a key away\. Give the key a value"),
        ("~trainer.max_steps=3", r"~trainer\.max_steps=3 cannot take a key away\."),
        ("hydra.run.dir=[", r"hydra\.run\.dir=\[ cannot be read\. Put the value into quotes"),
    ],
)
def test_a_wrong_choice_is_answered_with_what_to_type(word, line):
    with pytest.raises(ConfigError, match=line):
        compose(word)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trainer.max_steps=many", r"trainer\.max_steps=many must be a whole number\."),
        ("trainer.max_steps=1.5", r"trainer\.max_steps=1\.5 must be a whole number\."),
        ("trainer.max_steps=", r"trainer\.max_steps= must be a whole number\."),
        ("trainer.max_steps=[", r"trainer\.max_steps=\[ cannot be read\."),
        ("trainer.max_steps=true", r"trainer\.max_steps=true must be a whole number\."),
        ("trainer.learning_rate=fast", r"trainer\.learning_rate=fast must be a number\."),
        ("trainer.packing=maybe", r"trainer\.packing=maybe must be true or false\."),
        (
            "model.dtype=bf17",
            r"model\.dtype=bf17 must be one of auto, bf16, fp16, fp32\. Did you mean bf16\?",
        ),
        ("trainer.max_steps=null", r"trainer\.max_steps=null cannot be switched off\. Give a whole number"),
        ("model.path=null", r"model\.path=null cannot be switched off\. Give text"),
        ("adapter.targets=3", r"adapter\.targets=3 must be a list like \[q_proj,v_proj\]\."),
        ("trainer.max_steps=1,2", r"trainer\.max_steps=1,2 gives several values\. Add --multirun"),
        ("trainer.save_steps=${trainer.nothing}", r"Interpolation key 'trainer\.nothing' not found"),
    ],
)
def test_a_wrong_value_is_answered_with_the_right_ones(word, line):
    with pytest.raises(ConfigError, match=line):
        compose("recipe=quickstart", word)


def test_a_choice_made_twice_is_refused():
    assert problems_of("model=tiny", "model=gemma_2b") == [
        "model=gemma_2b is the second choice of model, after model=tiny. Keep one of them."
    ]


def test_a_refused_choice_brings_no_problems_of_what_was_not_typed():
    assert [line.split("=")[0] for line in problems_of("adapter=nonne")] == ["adapter"]
    assert [line.split("=")[0] for line in problems_of("dataset=locl", "quantization=none")] == ["dataset"]
    found = problems_of("model=gemma_2b_itt", "attention=sdpa", "trainer.optim=adamw_torhc")

    assert [line.split("=")[0] for line in found] == ["model", "attention", "trainer.optim"]


def test_a_wrong_key_in_ones_own_recipe_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "defaults:\n  - override /model: gema_2b\n  - override /optimizer: adam\n"
        "adapter: none\nquantization: {method: int8}\n"
        "trainer: {lr: 1e-3, packing: maybe}\ntrainer.max_steps: 4\n"
    )
    found = problems_of(f"recipe={path}")

    assert all(line.startswith(f"{path}: ") for line in found)
    text = "\n".join(found)
    assert "adapter=none is a choice. Put `- override /adapter: none` into the defaults list" in text
    assert "quantization=int8 is a choice. Put `- override /quantization: int8`" in text
    assert "trainer.lr is no key of a run. Write trainer.learning_rate." in text
    assert "trainer.packing=maybe must be true or false." in text
    assert "trainer.max_steps joins keys by dots" in text
    assert "defaults: model=gema_2b is no option of model. Did you mean model=gemma_2b?" in text
    assert "defaults: optimizer is no group." in text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\n", r"mine\.yaml: is not valid YAML\."),
        ("- a\n- b\n", r"mine\.yaml: holds no keys\."),
        ("defaults: model\n", r"mine\.yaml: defaults is no list\."),
        ("defaults: [nothing]\n", r"mine\.yaml: defaults: nothing is no recipe\."),
    ],
)
def test_a_broken_recipe_file_is_one_line(tmp_path, text, line):
    path = tmp_path / "mine.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=line) as caught:
        compose(f"recipe={path}")
    assert len(caught.value.problems) == 1


def test_a_wrong_key_in_a_recipe_that_ones_own_starts_from_names_that_file(tmp_path):
    (tmp_path / "parent.yaml").write_text("trainer: {lr: 1}\n")
    (tmp_path / "child.yaml").write_text("defaults: [parent]\n")

    assert problems_of(f"recipe={tmp_path / 'child.yaml'}") == [
        f"{tmp_path / 'parent.yaml'}: trainer.lr is no key of a run. Write trainer.learning_rate."
    ]


def test_a_recipe_whose_name_is_no_folder_name_is_refused(tmp_path):
    path = tmp_path / "my recipe.yaml"
    path.write_text("seed: 1\n")

    with pytest.raises(ConfigError, match=r"names the run folder\. Rename it"):
        compose(f"recipe={path}")


def test_a_config_dir_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--config-dir=.*is no folder"):
        compose(config_dir=str(tmp_path / "none"))


def test_an_option_of_ones_own_with_a_wrong_key_names_the_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text("pth: google/gemma-2b\n")

    with pytest.raises(ConfigError, match=r"own\.yaml: model\.pth is no key of a run\. Write model\.path\."):
        compose("model=own", config_dir=str(tmp_path))
