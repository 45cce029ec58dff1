"""Few activations are kept, and what is learned from them is what recomputed ones teach."""

import pytest
from program import assert_same_tensors, losses


@pytest.fixture
def computed(monkeypatch):
    """Note each time that a block's MLP is computed for training."""
    from transformers.models.gemma.modeling_gemma import GemmaMLP

    found = []
    forward = GemmaMLP.forward

    def note(self, *args):
        if self.training:
            found.append(self)
        return forward(self, *args)

    monkeypatch.setattr(GemmaMLP, "forward", note)
    return found


def test_it_learns_the_same_bits_with_them_kept(train, chats, computed):
    words = ["model=tiny", "dataset=local", f"dataset.path={chats}", "quantization=none", "export=none"]
    words += ["trainer.max_steps=3", "trainer.global_batch_size=4", "trainer.micro_batch_size=2"]
    words += ["trainer.logging_steps=1", "adapter.dropout=0.1", "trainer.max_length=128"]
    kept = train("name=kept", *words)
    once = len(computed)
    computed.clear()
    again = train("name=again", *words, "trainer.gradient_checkpointing=true")
    assert len(computed) == 2 * once > 0
    assert losses(kept) == losses(again)
    assert_same_tensors(kept / "adapter", again / "adapter")
