"""A run keeps the loss head that it began with, whatever would be measured later."""

import json

import pytest
import torch
from program import assert_same_tensors, losses

from gemma_ft.training.loss.chunked import _Work, score_in_chunks
from gemma_ft.training.loss.measuring import Bench


def words_for(chats, name, steps, *more):
    """Micro-batches of so many tokens that the chunk size is measured."""
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        "trainer.max_length=1024",
        "trainer.global_batch_size=8",
        "trainer.micro_batch_size=8",
        "trainer.lr_scheduler_type=constant",
        "trainer.warmup_steps=0",
        "trainer.learning_rate=1e-2",
        "trainer.logging_steps=1",
        f"trainer.max_steps={steps}",
        "quantization=none",
        "export=none",
        *more,
    ]


@pytest.fixture
def chunks(monkeypatch):
    """Note how many tokens are scored at once."""
    found = []
    take = _Work.take

    def note(self, start, targets_C):
        found.append(len(targets_C))
        take(self, start, targets_C)

    monkeypatch.setattr(_Work, "take", note)
    return found


def test_what_was_measured_once_is_taken_up_by_the_resume(train, chats, chunks, monkeypatch):
    monkeypatch.setattr(Bench, "time", lambda self, head, tokens: float(tokens))  # the fewest are the fastest
    whole = train(*words_for(chats, "whole", 4))
    run = train(*words_for(chats, "run", 2))
    begun = json.loads((run / "loss_head.json").read_text())
    assert begun["chunk_size"] == max(chunks) == 32
    assert begun["reason"] == "32 tokens at once: more are hardly faster"
    monkeypatch.setattr(Bench, "time", lambda self, head, tokens: 1 / tokens)
    chunks.clear()
    train(*words_for(chats, "run", 4))
    assert json.loads((run / "loss_head.json").read_text()) == begun
    assert max(chunks) == 32
    assert losses(run) == losses(whole)
    assert_same_tensors(run / "adapter", whole / "adapter")


def test_another_chunk_size_makes_another_run(train, chats, capsys):
    train(*words_for(chats, "run", 1))
    train(*words_for(chats, "run", 2, "trainer.loss_chunk_size=64"), code=2)
    assert "trainer.loss_chunk_size" in capsys.readouterr().err


def test_a_head_by_name_is_the_one_that_computes(train, chats, chunks):
    by_default = train(*words_for(chats, "own", 1, "trainer.loss_chunk_size=16"))
    assert max(chunks) == 16
    chunks.clear()
    by_trl = train(*words_for(chats, "trl", 1, "trainer.loss_head=trl"))
    assert chunks == []
    assert losses(by_trl) == pytest.approx(losses(by_default), rel=1e-6)
    assert json.loads((by_trl / "loss_head.json").read_text())["head"] == "trl"


def test_a_compiled_model_has_the_loss_of_one_that_is_not_and_its_head_is_left_as_it_is(
    train, chats, monkeypatch
):
    compiling = set()
    score = score_in_chunks

    def note(*args, **kwargs):
        compiling.add(torch.compiler.is_compiling())
        return score(*args, **kwargs)

    monkeypatch.setattr("gemma_ft.training.loss.heads.score_in_chunks", note)
    size, compiled = "trainer.loss_chunk_size=16", "+trainer.extra.torch_compile_backend=eager"
    plain = train(*words_for(chats, "plain", 3, size))
    run = train(*words_for(chats, "compiled", 3, size, compiled))
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
    assert compiling == {False}
