"""Every recipe, precision and adapter kind, trained through the command line's entry."""

from pathlib import Path

import pytest
from program import losses, status

RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SMALL = ["model=tiny", "trainer.max_steps=2", "trainer.max_length=64", "trainer.logging_steps=1"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_two_steps_on_ones_own_data(train, chats, recipe):
    run = train(f"recipe={recipe}", f"name={recipe}", "dataset=local", f"dataset.path={chats}", *SMALL)
    assert len(losses(run)) == 2
    assert status(run)["state"] == "finished"
    assert (run / "merged" / "config.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["quantization=nf4", "quantization.double_quant=false"],
        ["quantization=int8"],
        ["quantization=none"],
        ["quantization=none", "model.dtype=bf16"],
        ["quantization=nf4", "model.dtype=bf16"],
        ["quantization=nf4", "adapter=dora"],
        ["quantization=none", "adapter=dora"],
        ["quantization=none", "adapter=rslora"],
        ["quantization=none", "adapter=none", "trainer.learning_rate=1e-4"],
        ["quantization=none", "adapter=none", "model.dtype=bf16", "trainer.learning_rate=1e-4"],
        ["quantization=none", "trainer.packing=true", "adapter.targets=[q_proj,v_proj]"],
        ["trainer.neftune_noise_alpha=5", "adapter.dropout=0.1", "trainer.optim=adamw_8bit"],
        ["model.attention=eager", "dataset.loss_on=last_turn", "dataset.eval_fraction=0"],
    ],
    ids=" ".join,
)
def test_every_precision_and_adapter_learns(train, chats, words):
    run = train(
        "name=x",
        "dataset=local",
        f"dataset.path={chats}",
        *SMALL,
        "trainer.max_steps=6",
        "trainer.global_batch_size=4",
        "trainer.micro_batch_size=4",
        "trainer.learning_rate=1e-2",
        *words,
    )
    logged = losses(run)
    assert logged[-1] < 0.98 * logged[0]
    assert (run / "merged" / "model.safetensors").is_file()
