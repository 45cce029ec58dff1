"""A model's mode is set where it is another, and only there."""

import pytest
import torch

from gemma_ft.training.modes import switch_seldom


@pytest.fixture
def model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Dropout()))
    switch_seldom(model)
    return model


def modes(model):
    return [module.training for module in model.modules()]


@pytest.fixture
def switched(model, monkeypatch):
    """Note which modules are set."""
    found = []

    def note(self, name, value):
        if name == "training":
            found.append(self)
        object.__setattr__(self, name, value)

    monkeypatch.setattr(torch.nn.Module, "__setattr__", note)
    return found


def test_a_model_that_trains_is_left_alone(model, switched):
    assert model.train() is model
    assert switched == []


def test_a_model_that_was_evaluated_trains_again(model, switched):
    assert model.eval() is model
    assert modes(model) == [False] * 4
    assert model.train() is model
    assert modes(model) == [True] * 4
    assert len(switched) == 8


def test_a_single_module_that_was_evaluated_trains_again(model):
    model[1][0].eval()
    model.train()
    assert modes(model) == [True] * 4


def test_a_wrapped_model_is_switched_with_what_wraps_it(model):
    outer = torch.nn.Sequential(model)
    outer.eval()
    assert modes(outer) == [False] * 5
    outer.train()
    assert modes(outer) == [True] * 5
