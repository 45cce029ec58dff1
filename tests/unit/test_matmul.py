"""fp32 products by oneDNN: allowed where they are as exact as torch's own choice, and set back after."""

import pytest
import torch

from gemma_ft.modeling import matmul
from gemma_ft.modeling.matmul import Weight, by_onednn, find_fault, has_onednn, round_up, time_products

WEIGHTS = [Weight(96, 64, 3), Weight(4000, 64)]
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN to choose")


def precision():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_rows_are_rounded_up_to_few_numbers():
    found = [round_up(rows) for rows in range(1, 8193)]
    assert all(rows <= rounded for rows, rounded in enumerate(found, start=1))
    assert all(rounded % 16 == 0 for rounded in found)
    assert found == sorted(found)
    assert len(set(found)) == 8 + 6 * 8
    assert all(rounded <= rows * 9 / 8 for rows, rounded in enumerate(found, start=1) if rows > 128)


@pytest.mark.parametrize(
    ("rows", "rounded"), [(0, 0), (1, 16), (16, 16), (129, 144), (513, 576), (2048, 2048)]
)
def test_rows_that_are_a_round_number_stay(rows, rounded):
    assert round_up(rows) == rounded


@needs_onednn
def test_the_setting_is_as_before_after_whatever_happens_and_untouched_unless_wanted():
    before = precision()
    with by_onednn():
        assert precision() == "bf16"
        with by_onednn(wanted=False):
            assert precision() == "bf16"
    assert precision() == before
    with pytest.raises(KeyError), by_onednn():
        raise KeyError
    assert precision() == before


@needs_onednn
def test_products_found_exact_are_those_of_fp64_within_fp32():
    if find_fault(WEIGHTS):
        pytest.skip("this processor multiplies in bf16 where it may")
    source = torch.Generator().manual_seed(1)
    left, right = torch.randn(48, 300, generator=source), torch.randn(300, 70, generator=source)
    exact = left.double() @ right.double()
    with by_onednn():
        found = left @ right
    assert float((found - exact).norm() / exact.norm()) < 1e-6


@needs_onednn
def test_products_in_bf16_are_a_fault(monkeypatch):
    multiply = matmul._products

    def round_where_it_may(*factors):
        if precision() == "bf16":
            factors = [factor.bfloat16().to(factor.dtype) for factor in factors]
        return multiply(*factors)

    monkeypatch.setattr(matmul, "_products", round_where_it_may)
    assert find_fault(WEIGHTS).startswith("its products are 0.00")


@needs_onednn
def test_a_wrong_backward_product_is_a_fault_too(monkeypatch):
    multiply = matmul._products

    def lose_the_last_row(*factors):
        forward, backward = multiply(*factors)
        if precision() == "bf16":
            backward[-1] = 0
        return forward, backward

    monkeypatch.setattr(matmul, "_products", lose_the_last_row)
    assert "relative; torch's own choice" in find_fault(WEIGHTS)


@needs_onednn
def test_time_counts_each_weight_as_often_as_the_model_has_it(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(matmul.time, "perf_counter", lambda: next(clock))
    assert time_products(WEIGHTS, 8, onednn=True) == 4.0


@needs_onednn
def test_measuring_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    find_fault(WEIGHTS)
    time_products(WEIGHTS, 8, onednn=True)
    assert torch.equal(torch.rand(3), expected)


@needs_onednn
def test_a_library_that_fails_is_at_fault(monkeypatch):
    def fail(*_):
        raise RuntimeError("could not create a primitive\nstack")

    monkeypatch.setattr(matmul, "_products", fail)
    assert find_fault(WEIGHTS) == "it does not multiply: could not create a primitive"
