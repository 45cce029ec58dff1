"""A run keeps the library that multiplied its matrices from the start, whatever would be measured later."""

import json

import pytest
import torch
from program import assert_same_tensors, losses

from gemma_ft.modeling.matmul import find_fault
from gemma_ft.training import matmul


def words_for(chats, name, steps, *more):
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        "dataset.eval_fraction=0.2",
        "adapter.dropout=0.1",
        "trainer.max_length=96",
        "trainer.global_batch_size=4",
        "trainer.micro_batch_size=2",
        "trainer.lr_scheduler_type=constant",
        "trainer.learning_rate=1e-2",
        "trainer.logging_steps=1",
        "trainer.loss_chunk_size=16",
        f"trainer.max_steps={steps}",
        "export=none",
        *more,
    ]


@pytest.fixture
def onednn(monkeypatch):
    """Have oneDNN be taken for small models too, where it is exact, by being the faster one."""
    here = {"onednn": 1.0, "default": 2.0}
    monkeypatch.setattr(matmul, "_SMALL", 0)
    monkeypatch.setattr(
        matmul, "time_products", lambda weights, rows, *, onednn: here["onednn" if onednn else "default"]
    )
    return here


@pytest.fixture
def used(monkeypatch):
    """Note how products are set up where hidden states are scored."""
    from gemma_ft.training.loss.heads import LossHead

    found = set()
    score = LossHead.score

    def note(self, *args, **kwargs):
        found.add(torch.backends.mkldnn.matmul.fp32_precision)
        return score(self, *args, **kwargs)

    monkeypatch.setattr(LossHead, "score", note)
    return found


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_resume_goes_on_with_it_bit_for_bit(train, chats, onednn, used, packing, quantization):
    more = [f"trainer.packing={packing}", f"quantization={quantization}"]
    whole = train(*words_for(chats, "whole", 4, *more))
    run = train(*words_for(chats, "run", 2, *more))
    begun = json.loads((run / "cpu_matmul.json").read_text())
    exact = not find_fault([matmul.Weight(*weight) for weight in begun["chosen_for"]["weights"]])
    assert begun["cpu_matmul"] == ("onednn" if exact else "default")
    assert used == ({"bf16"} if exact else {"none"})
    onednn["onednn"] = 100.0
    train(*words_for(chats, "run", 4, *more))
    assert json.loads((run / "cpu_matmul.json").read_text()) == begun
    assert losses(run) == losses(whole)
    assert_same_tensors(run / "adapter", whole / "adapter")
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize("packing", ["true", "false"])
def test_it_learns_the_same_in_the_same_tokens(train, chats, onednn, packing):
    more = ["quantization=none", "adapter.dropout=0", f"trainer.packing={packing}"]
    run = train(*words_for(chats, "run", 3, *more))
    usual = train(*words_for(chats, "usual", 3, *more, "trainer.cpu_matmul=default"))
    assert losses(run) == pytest.approx(losses(usual), rel=1e-5)
    tokens = [
        [
            record.get("num_tokens")
            for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        ]
        for folder in (run, usual)
    ]
    assert tokens[0] == tokens[1]
    assert not (usual / "cpu_matmul.json").exists()


def test_what_it_multiplies_by_is_part_of_a_run(train, chats, capsys):
    train(*words_for(chats, "run", 1))
    train(*words_for(chats, "run", 2, "trainer.cpu_matmul=default"), code=2)
    assert "trainer.cpu_matmul" in capsys.readouterr().err
