"""Batches padded to few lengths: what their tokens learn, and what is told of them, stays the same."""

import pytest
import torch
import transformers
from test_loss_in_models import HEAD, batch_of, build, gradients, train_with

from gemma_ft.config.trainer import CpuMatmul
from gemma_ft.modeling.matmul import find_fault, has_onednn
from gemma_ft.training.loss.installed import LossTrainer, install, pad_inputs
from gemma_ft.training.matmul import linear_weights


def learn(model, batch):
    found = model(**batch, fused_lm_head=True, loss_head=HEAD)
    return found, gradients(model, -found.log_probs / 33)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_loss_and_gradients_do_not_see_the_padding(family, packed):
    batch = batch_of(0.5)
    if packed:  # three rows in one, which know their ends by positions
        ends = torch.cat([torch.arange(11), torch.arange(30), torch.arange(19)])
        batch = {
            "input_ids": batch["input_ids"][:1],
            "labels": batch["labels"][:1],
            "position_ids": ends[None],
        }
    plain, padded = build(family).train(), build(family).train()
    install(plain)
    install(padded, few_lengths=True)
    lengths = []
    padded.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    expected, exact = learn(plain, batch)
    found, own = learn(padded, batch)
    assert lengths == [64]
    assert found.log_probs.item() == pytest.approx(expected.log_probs.item(), rel=1e-6)
    assert torch.equal(found.label_mask, expected.label_mask)
    assert torch.equal(found.is_top1, expected.is_top1)
    for name, gradient in own.items():
        assert torch.allclose(gradient, exact[name], rtol=1e-4, atol=1e-6), name


def test_the_last_of_packed_rows_goes_on_and_all_else_is_handed_through():
    inputs = {
        "input_ids": torch.full((1, 15), 3),
        "position_ids": torch.tensor([[0, 1, 2] * 5]),
        "use_cache": 0,
    }
    padded = pad_inputs(inputs)
    assert padded["input_ids"].tolist() == [[3] * 15 + [0]]
    assert padded["position_ids"].tolist() == [[0, 1, 2] * 5 + [3]]
    assert padded.keys() == inputs.keys()
    assert inputs["input_ids"].shape == (1, 15)


def test_a_batch_of_a_round_length_stays_as_it_is():
    inputs = {"input_ids": torch.ones(2, 32), "attention_mask": torch.ones(2, 32)}
    assert all(torch.equal(value, inputs[name]) for name, value in pad_inputs(inputs).items())


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN to choose")
def test_a_trainer_computes_by_onednn_and_logs_what_it_would_otherwise(tiny, tmp_path, monkeypatch):
    if find_fault(linear_weights(build("gemma"))):
        pytest.skip("this processor multiplies in bf16 where it may")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    usual = train_with(LossTrainer, "gemma", tmp_path / "usual", tokenizer, loss_head=HEAD)
    seen = set()
    backward = torch.Tensor.backward

    def note(self, *args, **kwargs):
        seen.add(("backward", torch.backends.mkldnn.matmul.fp32_precision))
        backward(self, *args, **kwargs)

    def note_forward(*_):
        seen.add(("forward", torch.backends.mkldnn.matmul.fp32_precision))

    monkeypatch.setattr(torch.Tensor, "backward", note)
    with torch.nn.modules.module.register_module_forward_pre_hook(note_forward):
        found = train_with(
            LossTrainer, "gemma", tmp_path / "run", tokenizer, loss_head=HEAD, matmul=CpuMatmul.onednn
        )
    assert seen == {("forward", "bf16"), ("backward", "bf16")}
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
    for ours, theirs in zip(found, usual, strict=True):
        for key in ("loss", "eval_loss", "grad_norm", "num_tokens", "mean_token_accuracy", "eval_entropy"):
            assert ours.get(key, 0) == pytest.approx(theirs.get(key, 0), rel=2e-5), key
