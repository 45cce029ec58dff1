"""Runs that are trained on for more steps than they were begun with."""

import json
from pathlib import Path

import pytest
from program import assert_same_tensors, losses, status


def words_for(chats: Path, name: str, *more: str) -> list[str]:
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        "dataset.eval_fraction=0.2",
        "trainer.max_length=64",
        "trainer.global_batch_size=2",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-2",
        "trainer.save_steps=100",
        "adapter.dropout=0.1",
        "quantization=none",
        "export=none",
        *more,
    ]


@pytest.fixture
def rates(train, chats):
    """The learning rates that eight steps have from the start."""

    def measure(*more: str) -> list[float]:
        return losses(train(*words_for(chats, "whole", "trainer.max_steps=8", *more)), "learning_rate")

    return measure


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("linear", marks=pytest.mark.slow)])
def test_an_extended_run_takes_its_further_steps_at_the_rates_of_the_stretched_schedule(
    train, chats, rates, caplog, schedule
):
    more = [f"trainer.lr_scheduler_type={schedule}"]
    whole = rates(*more)
    short = train(*words_for(chats, "short", "trainer.max_steps=4", *more))
    first = losses(short, "learning_rate")
    assert first != whole[:4]
    caplog.clear()
    train(*words_for(chats, "short", "trainer.max_steps=8", *more), "--extend")
    assert losses(short, "learning_rate") == [*first, *whole[4:]]
    assert f"extended to 8 steps: the {schedule} schedule spans all of them" in caplog.text
    assert f"the learning rate at step 4 goes from 0 to {whole[4]:.3g}" in caplog.text
    assert status(short)["state"] == "finished"


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ("trainer.max_steps=4", "trainer.max_steps=8"),
        pytest.param("trainer.num_train_epochs=1", "trainer.num_train_epochs=2", marks=pytest.mark.slow),
        pytest.param("trainer.num_train_epochs=0.5", "trainer.num_train_epochs=1.5", marks=pytest.mark.slow),
    ],
)
def test_more_steps_under_a_constant_schedule_are_those_of_a_run_that_had_them_from_the_start(
    train, chats, shorter, longer
):
    more = ["trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0", "trainer.global_batch_size=10"]
    whole = train(*words_for(chats, "whole", *more, longer))
    short = train(*words_for(chats, "short", *more, shorter))
    assert len(losses(short)) < len(losses(whole))
    train(*words_for(chats, "short", *more, longer))
    assert losses(short) == losses(whole)
    assert losses(short, "eval_loss") == losses(whole, "eval_loss")
    assert_same_tensors(short / "adapter", whole / "adapter")


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(False, id="before it saves", marks=pytest.mark.slow),
        pytest.param(True, id="after, and its checkpoint is torn"),
    ],
)
def test_an_extension_that_is_cut_goes_on_from_the_end_of_the_shorter_run(train, chats, monkeypatch, torn):
    from gemma_ft.training.trainer import RunTrainer

    short = train(*words_for(chats, "short", "trainer.max_steps=4"))
    words = words_for(chats, "short", "trainer.max_steps=8")
    step = RunTrainer.training_step

    def interrupt(self, *args):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", interrupt)
        train(*words, "--extend", *(["trainer.save_steps=5"] if torn else []), code=130)
    if torn:
        (short / "checkpoints/step-000005/optimizer.pt").write_bytes(b"torn")
    train(*words)
    assert len(losses(short)) == 8
    assert losses(short, "learning_rate")[4] > 0
    assert status(short)["state"] == "finished"


def test_patience_counts_anew_in_an_extended_run(train, chats):
    more = ["trainer.eval_steps=1", "trainer.save_steps=1", "trainer.load_best_model_at_end=true"]
    more += ["trainer.early_stopping_patience=2", "trainer.learning_rate=0"]  # no evaluation is ever better
    short = train(*words_for(chats, "short", "trainer.max_steps=8", *more))
    assert len(losses(short)) == 3
    train(*words_for(chats, "short", "trainer.max_steps=9", *more), "--extend")
    assert len(losses(short)) == 5
    state = json.loads((short / "checkpoints/step-000005/trainer_state.json").read_text())
    assert (state["best_global_step"], state["max_steps"]) == (1, 9)
