"""Activations are computed twice where that saves memory which somebody would miss."""

from types import SimpleNamespace

import datasets
import pytest

from gemma_ft.config.compose import compose
from gemma_ft.config.optimizers import find_optimizer_problems
from gemma_ft.config.schema import Attention, Dtype, ParallelMethod, RunConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.modeling.precision import Device, Precision
from gemma_ft.training.activations import Sizes, settle_checkpointing
from gemma_ft.training.layout import Layout

CPU = Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)
TINY = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 3,
    "vocab_size": 256_000,
}
GEMMA_7B = {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_attention_heads": 16,
    "head_dim": 256,
    "num_hidden_layers": 28,
    "vocab_size": 256_000,
}


def settle(sizes=TINY, *, longest=64, dtype=Dtype.fp32, attention=Attention.sdpa, sharded=False, **trainer):
    method = ParallelMethod.fsdp if sharded else ParallelMethod.single
    layout = Layout(world_size=2 if sharded else 1, rank=0, accumulation=1, method=method)
    assert layout.sharded is sharded
    precision = Precision(device=CPU, dtype=dtype, attention=attention, reasons=())
    config = RunConfig(name="a", trainer=TrainerConfig(**trainer))
    rows = datasets.Dataset.from_dict({"length": [5, longest, 9]})
    settled = settle_checkpointing(config, layout, SimpleNamespace(config=sizes), precision, rows)
    assert config.trainer == TrainerConfig(**trainer)  # what the run was asked for stays as it was
    return settled.trainer.gradient_checkpointing


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_is_done(asked):
    assert settle(gradient_checkpointing=asked) is asked
    assert settle(GEMMA_7B, longest=2048, gradient_checkpointing=asked) is asked


def test_few_are_kept_and_many_are_recomputed():
    assert settle() is False
    assert settle(GEMMA_7B, longest=2048, dtype=Dtype.bf16) is True


def test_the_longest_row_there_is_counts_and_packed_the_longest_there_may_be():
    assert settle(longest=1800) is False
    assert settle(longest=1830) is True
    assert settle(longest=1000, micro_batch_size=2) is True
    assert settle(longest=5, max_length=2048, packing=True) is True
    assert settle(longest=3400, dtype=Dtype.bf16) is False


@pytest.mark.parametrize(
    "words",
    [
        {"sharded": True},
        {"attention": Attention.eager},
        {"extra": {"activation_checkpointing_kwargs": {"every_n_layers": 2}}},
    ],
    ids=["in shards", "a matrix of all pairs of tokens", "it is told how"],
)
def test_it_is_left_on_where_the_estimate_does_not_tell(words):
    assert settle(**words) is True


def test_the_estimate_is_what_a_block_keeps():
    sizes = Sizes.read(TINY)
    assert sizes.activations(100, checkpointed=False, item_bytes=4) == 100 * 3 * 4 * 4 * (256 + 256 + 1024)
    assert sizes.activations(100, checkpointed=True) < sizes.activations(100, checkpointed=False) / 2


def test_its_arguments_are_read_unless_it_is_off():
    config = compose("recipe=quickstart")
    config.trainer.extra = {"activation_checkpointing_kwargs": {"every_n_layers": 2}}
    assert find_optimizer_problems(config.trainer) == []
    config.trainer.gradient_checkpointing = False
    assert "Add trainer.gradient_checkpointing=true" in find_optimizer_problems(config.trainer)[0]
