"""The loss head of a run is settled at its first start, recorded, and taken up again."""

import json
from types import SimpleNamespace

import pytest
import torch

from gemma_ft.config.schema import Attention, Dtype, ParallelMethod, RunConfig
from gemma_ft.config.trainer import LossHeadMethod, TrainerConfig
from gemma_ft.modeling.precision import Device, Precision
from gemma_ft.runs import RunFolder
from gemma_ft.training.layout import Layout
from gemma_ft.training.loss import settled
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.loss.measuring import Bench

ALONE = Layout(world_size=1, rank=0, accumulation=1, method=ParallelMethod.single)
LAST_OF_TWO = Layout(world_size=2, rank=1, accumulation=1, method=ParallelMethod.ddp)
PRECISION = Precision(
    device=Device(kind="cpu", name="CPU", bf16=False, flash_attention=False),
    dtype=Dtype.fp32,
    attention=Attention.sdpa,
    reasons=(),
)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def slower(monkeypatch):
    """Have the fewest tokens be the fastest; a call makes the most tokens so."""
    best = {"sign": 1}
    monkeypatch.setattr(Bench, "time", lambda self, head, tokens: float(tokens) ** best["sign"])
    return lambda: best.update(sign=-1)


def settle(run, layout=ALONE, **trainer):
    weight = torch.nn.Parameter(torch.randn(20_000, 16))
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=weight))
    config = RunConfig(name="a", trainer=TrainerConfig(**{"max_length": 1024, **trainer}))
    checkpoint = SimpleNamespace(config={})
    return settled.settle_head(config, run, layout, checkpoint, PRECISION, model, torch.device("cpu"))


def test_a_resume_takes_what_the_run_began_with_however_fast_it_is_now(run, slower):
    first = settle(run)
    record = json.loads(run.loss_head.read_text())
    slower()
    assert settle(run) == first == LossHead(LossHeadMethod.chunked, 32)
    assert json.loads(run.loss_head.read_text()) == record
    assert record["reason"] == "32 tokens at once: more are hardly faster"
    assert {entry["chunk_size"] for entry in record["measured"]} == {32, 64, 128, 256, 512, 1024}


@pytest.mark.parametrize(
    ("key", "value"), [("device", "another"), ("torch", "1.0"), ("dtype", "bf16"), ("most_tokens", 7)]
)
def test_it_is_chosen_anew_where_the_circumstances_are_others(run, slower, key, value):
    settle(run)
    record = json.loads(run.loss_head.read_text())
    record["chosen_for"][key] = value
    run.loss_head.write_text(json.dumps(record))
    slower()
    assert settle(run).chunk_size == 1024
    assert json.loads(run.loss_head.read_text())["chunk_size"] == 1024


def test_a_chunk_size_asked_for_is_recorded_as_such(run):
    assert settle(run, loss_chunk_size=48).chunk_size == 48
    assert json.loads(run.loss_head.read_text())["reason"] == "chunk size as asked"


def test_the_other_processes_measure_nothing_and_take_what_the_first_says(run, monkeypatch):
    monkeypatch.setattr(Bench, "time", lambda *_: pytest.fail("measured"))
    told = iter([list(LossHeadMethod).index(LossHeadMethod.trl), 0])
    monkeypatch.setattr(settled, "told_by_writer", lambda number: next(told) if number is None else number)
    assert settle(run, LAST_OF_TWO) == LossHead(LossHeadMethod.trl)
    assert not run.loss_head.exists()
