"""A step that is not finite is named, with its rows, before it is taken."""

import math
from types import SimpleNamespace

import datasets
import pytest
import torch

from gemma_ft.data.finding import find_rows
from gemma_ft.training.failures import NotFiniteError
from gemma_ft.training.guard import StepGuard, all_finite, weights_of

NAN, INF = math.nan, math.inf
TOKENS = [[2, 10, 11], [2, 12], [2, 13, 14, 15], [2, 16], [2, 17, 18], [2, 12]]


@pytest.fixture
def rows():
    return datasets.Dataset.from_dict(
        {
            "input_ids": TOKENS,
            "length": [len(row) for row in TOKENS],
            "where": [f"my.jsonl:{number + 1}" for number in range(len(TOKENS))],
        }
    )


@pytest.fixture
def guard(rows):
    return StepGuard(SimpleNamespace(rows=rows))


def padded(*rows):
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def packed(*rows):
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(row))]]),
    }


def weights(gradient=1.0, value=1.0):
    parameter = torch.nn.Parameter(torch.full((2,), value))
    parameter.grad = torch.full((2,), gradient)
    return [parameter]


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.scale


def test_the_rows_of_earlier_steps_are_not_named(guard):
    guard.saw(padded(TOKENS[0]), torch.tensor(1.0))
    guard.check(torch.tensor(0.5), weights(), 1, None)
    guard.saw(padded(TOKENS[2]), torch.tensor(1.0))
    with pytest.raises(NotFiniteError, match=r"in the batch of my\.jsonl:3$"):
        guard.check(torch.tensor(NAN), weights(), 2, None)


def test_finite_steps_pass_and_are_forgotten(guard):
    for step in (1, 2):
        guard.saw(padded(TOKENS[0]), torch.tensor(1.0))
        guard.check(torch.tensor(0.5), weights(), step, None)
    guard.saw(padded(TOKENS[1]), torch.tensor(NAN))
    with pytest.raises(NotFiniteError, match=r"at step 3, in the batch of my\.jsonl:2, my\.jsonl:6$"):
        guard.check(torch.tensor(NAN), weights(), 3, None)


@pytest.mark.parametrize("form", [padded, packed])
@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_loss_names_the_rows_of_its_micro_batch_alone(guard, form, loss):
    guard.saw(form(TOKENS[0], TOKENS[2]), torch.tensor(1.0))
    guard.saw(form(TOKENS[4], TOKENS[3]), torch.tensor(loss))
    message = rf"^the loss is {loss:g} at step 7, in the batch of my\.jsonl:5, my\.jsonl:4$"
    with pytest.raises(NotFiniteError, match=message) as caught:
        guard.check(torch.tensor(0.5), weights(), 7, None)
    assert (caught.value.step, caught.value.weights) == (7, False)


@pytest.mark.parametrize("norm", [torch.tensor(INF), NAN, None])
def test_gradients_alone_name_all_rows_of_the_step(guard, norm):
    guard.saw(padded(TOKENS[0]), torch.tensor(1.0))
    guard.saw(padded(TOKENS[2]), torch.tensor(1.0))
    with pytest.raises(
        NotFiniteError, match=r"norm of the gradients is (nan|inf) at .* my\.jsonl:1, my\.jsonl:3$"
    ):
        guard.check(norm, weights(gradient=NAN), 1, None)


def test_gradients_are_looked_at_where_there_is_no_norm(guard):
    guard.saw(padded(TOKENS[0]), torch.tensor(1.0))
    guard.check(None, weights(gradient=1.0), 1, None)


def test_a_loss_scale_may_overflow_until_it_cannot_be_the_cause(guard):
    guard.saw(padded(TOKENS[0]), torch.tensor(1.0))
    guard.check(torch.tensor(INF), weights(gradient=INF), 1, Scaler(1.0))
    guard.saw(padded(TOKENS[0]), torch.tensor(1.0))
    with pytest.raises(NotFiniteError, match="norm of the gradients is inf"):
        guard.check(torch.tensor(INF), weights(gradient=INF), 2, Scaler(0.5))
    guard.saw(padded(TOKENS[0]), torch.tensor(NAN))
    with pytest.raises(NotFiniteError, match="loss is nan"):
        guard.check(torch.tensor(NAN), weights(), 3, Scaler(65536.0))


def test_a_weight_that_is_not_finite_is_seen_whatever_holds_it(guard):
    guard.saw(padded(TOKENS[0]), torch.tensor(NAN))
    with pytest.raises(NotFiniteError) as caught:
        guard.check(torch.tensor(NAN), weights(value=INF), 1, None)
    assert caught.value.weights


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_4bit_weight_is_looked_at_as_what_it_stands_for(double_quant):
    from bitsandbytes.nn import Params4bit

    for value, finite in ((1.0, True), (INF, False)):
        plain = torch.ones(64, 64)
        plain[3, 5] = value
        weight = Params4bit(
            plain, requires_grad=False, quant_type="nf4", compress_statistics=double_quant, blocksize=64
        ).to("cpu")
        assert weight.dtype == torch.uint8
        assert all_finite([weight]) is finite


def test_an_int8_weight_is_looked_at_by_its_scales():
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    weight.SCB = torch.tensor([1.0, NAN])
    assert not all_finite([weight])
    weight.SCB = torch.tensor([1.0, 2.0])
    assert all_finite([weight])


@pytest.mark.parametrize("computed", [False, True])
def test_an_int8_layer_is_looked_at_before_and_after_it_has_computed(computed):
    from bitsandbytes.nn import Linear8bitLt

    for value, finite in ((1.0, True), (INF, False)):
        layer = Linear8bitLt(8, 4, bias=False, has_fp16_weights=False)
        layer.load_state_dict({"weight": torch.full((4, 8), value)})
        layer = layer.to("cpu")
        if computed:
            layer(torch.ones(1, 8))
        assert all_finite(weights_of(layer)) is finite


def test_many_rows_are_counted_and_not_all_named(guard):
    long = [f"a.jsonl:{number}" for number in range(9)]
    error = NotFiniteError("the loss is nan", step=2, rows=tuple(long))
    assert str(error).endswith("in the batch of " + ", ".join(long[:5]) + " and 4 more")


def test_rows_are_found_among_many_of_their_length_and_after_a_selection(rows):
    many = datasets.Dataset.from_dict(
        {
            "input_ids": [[2, number] for number in range(2500)],
            "length": [2] * 2500,
            "where": [f"many.jsonl:{number + 1}" for number in range(2500)],
        }
    )
    assert find_rows(many, [[2, 2400], [2, 7]]) == ["many.jsonl:8", "many.jsonl:2401"]
    assert find_rows(rows.select([5, 4, 3]), [[2, 12], [2, 17, 18], [9, 9]]) == ["my.jsonl:6", "my.jsonl:5"]
    assert find_rows(rows, []) == []
