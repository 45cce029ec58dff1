"""A configuration that is built in Python, with values of other types than its keys."""

import pytest

from gemma_ft.config.catalog import load_recipes
from gemma_ft.config.checks import check_config, find_problems
from gemma_ft.config.compose import compose
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "adapter.method",
            "lora",
            r"adapter.method='lora' is of type str. Give AdapterMethod.none or Adapter",
        ),
        ("trainer.max_steps", "5", r"trainer.max_steps='5' is of type str. Give an int."),
        ("trainer.max_steps", True, r"trainer.max_steps=True is of type bool. Give an int."),
        ("trainer.learning_rate", "1e-4", r"trainer.learning_rate='1e-4' is of type str. Give a float."),
        ("trainer.max_hours", "2", r"trainer.max_hours='2' is of type str. Give a float or None."),
        ("trainer.extra", None, r"trainer.extra=None is of type NoneType. Give dict"),
        ("trainer.extra", {1: 2}, r"trainer.extra={1: 2} is of type dict. Give dict"),
        ("adapter.targets", "q_proj", r"adapter.targets='q_proj' is of type str. Give tuple"),
        ("seed", "x", r"seed='x' is of type str. Give an int."),
        ("model.path", None, r"model.path=None is of type NoneType. Give a str."),
        ("trainer", None, r"trainer=None is of type NoneType. Give a TrainerConfig."),
    ],
)
def test_a_value_of_another_type_is_refused(key, value, told):
    config = RunConfig(name="mine")
    section, _, name = key.rpartition(".")
    setattr(getattr(config, section) if section else config, name, value)
    with pytest.raises(ConfigError) as refused:
        check_config(config)
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize("recipe", [recipe.name for recipe in load_recipes()])
def test_what_is_composed_has_its_types(recipe):
    config = compose(f"recipe={recipe}")
    assert not [problem for problem in find_problems(config) if "is of type" in problem]


def test_a_whole_number_may_stand_for_a_float_and_a_list_for_a_tuple():
    config = RunConfig(name="mine")
    config.trainer.learning_rate, config.adapter.targets = 1, ["q_proj"]
    assert not [problem for problem in find_problems(config) if "is of type" in problem]
