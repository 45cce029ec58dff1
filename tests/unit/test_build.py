"""What is checked of a model before it is trained."""

import pytest
import torch

from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import ModelError
from gemma_ft.training.build import _count_trainable


def test_a_model_of_which_nothing_would_be_trained_is_refused():
    model = torch.nn.Linear(3, 2)
    assert _count_trainable(model, RunConfig(name="a")) == 8
    with pytest.raises(
        ModelError, match=r"^adapter=\S+ leaves model\.path=\S+ without a trainable parameter"
    ):
        _count_trainable(model.requires_grad_(False), RunConfig(name="a"))
