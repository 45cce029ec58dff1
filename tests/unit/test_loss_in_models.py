"""Whole models through the loss head: the loss and every gradient of plain cross-entropy on their logits."""

import json

import datasets
import peft
import pytest
import torch
import transformers
import trl
from torch.nn import functional

from gemma_ft.config.schema import QuantizationConfig, QuantizationMethod
from gemma_ft.config.trainer import LossHeadMethod
from gemma_ft.modeling.loading import build_quantization
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.loss.installed import LossTrainer, install

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.1,
}
LATER = {"query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"]}
CLASSES = {
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}
HEAD = LossHead(LossHeadMethod.chunked, 7)


def build(family, *, method="full", tied=True, dtype=torch.float32, folder=None):
    config_class, model_class = CLASSES[family]
    settings = {} if family == "gemma" else LATER
    if family == "gemma2":
        settings = {**settings, "final_logit_softcapping": 4.0}
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **settings, tie_word_embeddings=tied)).to(dtype)
    if method == "qlora":
        model.save_pretrained(folder)
        quantization = build_quantization(QuantizationConfig(method=QuantizationMethod.nf4), dtype)
        model = model_class.from_pretrained(folder, quantization_config=quantization, dtype=dtype)
    if method != "full":
        torch.manual_seed(1)
        settings = peft.LoraConfig(
            target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, settings)
    return model


def batch_of(masked):
    """Return two rows, one padded, with this share of the labels masked."""
    source = torch.Generator().manual_seed(3)
    ids_BL = torch.randint(1, SIZES["vocab_size"], (2, 60), generator=source)
    labels_BL = ids_BL.clone()
    labels_BL[torch.rand(ids_BL.shape, generator=source) < masked] = -100
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 40:] = 0
    labels_BL[1, 40:] = -100
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def learn_plainly(model, batch, tokens):
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits_BLV = model(**inputs).logits[:, :-1].float()
    loss = functional.cross_entropy(
        logits_BLV.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    return loss.detach() / tokens, gradients(model, loss / tokens)


def learn_by_head(model, batch, tokens):
    found = model(**batch, fused_lm_head=True, loss_head=HEAD)
    return -found.log_probs.detach() / tokens, gradients(model, -found.log_probs / tokens)


@pytest.mark.parametrize("masked", [0.0, 0.75, 0.99])
@pytest.mark.parametrize(
    ("family", "method", "tied", "checkpointing"),
    [
        ("gemma", "full", True, False),
        ("gemma", "full", False, True),
        ("gemma2", "full", True, True),
        ("gemma2", "full", False, False),
        ("gemma3", "full", True, False),
        ("gemma", "lora", True, True),
        ("gemma2", "lora", False, False),
        ("gemma3", "lora", True, False),
        ("gemma", "qlora", True, False),
        ("gemma2", "qlora", True, True),
    ],
)
def test_loss_and_gradients_are_those_of_the_models_logits(
    family, method, tied, checkpointing, masked, tmp_path
):
    model = build(family, method=method, tied=tied, folder=tmp_path).train()
    install(model.get_base_model() if method != "full" else model)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    batch = batch_of(masked)
    exact_loss, exact = learn_plainly(model, batch, 33)
    loss, found = learn_by_head(model, batch, 33)
    assert exact_loss > 0
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-6)
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, exact[name], rtol=1e-4, atol=1e-6), name


def test_bf16_stays_within_the_rounding_of_the_plain_computation():
    model = build("gemma", dtype=torch.bfloat16).train()
    install(model)
    batch = batch_of(0.5)
    exact_loss, exact = learn_plainly(build("gemma", dtype=torch.bfloat16).double().train(), batch, 33)
    plain_loss, plain = learn_plainly(model, batch, 33)
    loss, found = learn_by_head(model, batch, 33)
    assert abs(loss - exact_loss) <= abs(plain_loss - exact_loss) + 1e-4
    for name, gradient in found.items():
        allowed = (plain[name].double() - exact[name]).norm()
        assert (gradient.double() - exact[name]).norm() <= 1.5 * allowed, name


def test_a_model_that_is_only_called_answers_as_before():
    model = build("gemma2").eval()
    batch = batch_of(0.5)
    with torch.no_grad():
        before = model(**batch)
        install(model)
        after = model(**batch)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)


def train_with(kind, family, folder, tokenizer, **extra):
    """Train three steps of two micro-batches on rows of unlike length; return what was logged."""
    source = torch.Generator().manual_seed(5)
    rows = []
    for length in (40, 12, 33, 25, 18, 50, 9, 30, 44, 21, 16, 27):
        ids = torch.randint(1, SIZES["vocab_size"], (length,), generator=source).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=3,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    data = datasets.Dataset.from_list(rows)
    trainer = kind(
        model=build(family), args=arguments, train_dataset=data, eval_dataset=data,
        processing_class=tokenizer, **extra,
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_the_trainer_logs_what_trls_own_logs(family, tiny, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    stock = train_with(trl.SFTTrainer, family, tmp_path / "stock", tokenizer)
    own = train_with(LossTrainer, family, tmp_path / "own", tokenizer, loss_head=HEAD)
    compared = ("loss", "eval_loss", "grad_norm", "num_tokens")
    measured = ("entropy", "mean_token_accuracy", "eval_entropy", "eval_mean_token_accuracy")
    assert {"loss", "eval_loss", "eval_entropy"} <= {key for record in own for key in record}
    for ours, theirs in zip(own, stock, strict=True):
        assert ours.keys() == theirs.keys()
        for key in (*compared, *measured):
            assert ours.get(key, 0) == pytest.approx(theirs.get(key, 0), rel=2e-5), (key, json.dumps(ours))


def test_a_head_that_tells_no_entropy_logs_none(tiny, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    head = LossHead(LossHeadMethod.torch)
    logged = train_with(LossTrainer, "gemma", tmp_path, tokenizer, loss_head=head)
    assert not {"entropy", "mean_token_accuracy", "eval_entropy"} & {
        key for record in logged for key in record
    }
    assert all(record["loss"] > 0 for record in logged if "loss" in record)
