"""Packed sequences through the trainer's own collator and loss: the same numbers as row by row."""

from itertools import pairwise
from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers
import trl
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gemma_ft.config.checks import check_config
from gemma_ft.config.schema import Attention, Dtype, ParallelMethod, RunConfig
from gemma_ft.config.trainer import CpuMatmul, LossHeadMethod, TrainerConfig
from gemma_ft.data.packing import describe_packing, pack
from gemma_ft.data.tokens.encoding import NOT_LEARNED
from gemma_ft.errors import ConfigError, DataError
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.precision import Device, Precision
from gemma_ft.runs import RunFolder
from gemma_ft.training.arguments import build_arguments
from gemma_ft.training.guard import StepGuard
from gemma_ft.training.layout import Layout
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.trainer import RunTrainer

MAX_LENGTH, WINDOW = 96, 16
LENGTHS = [70, 26, 50, 40, 33, 21, 17, 9, 60, 5, 30]
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
GEMMA_2, GEMMA_3 = (
    (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
)


@pytest.fixture(scope="module", params=["Gemma 1, sdpa", "Gemma 2, eager", "Gemma 3, sdpa"])
def model(request, tiny):
    name, attention = request.param.split(", ")
    if name == "Gemma 1":
        return transformers.AutoModelForCausalLM.from_pretrained(
            tiny, dtype=torch.float32, attn_implementation=attention
        )
    torch.manual_seed(1)
    config_class, model_class = GEMMA_2 if name == "Gemma 2" else GEMMA_3
    config = config_class(**SIZES, attn_implementation=attention)
    return model_class(config)


@pytest.fixture(scope="module")
def rows():
    """Random rows, each with its first half masked."""
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(110, 500, (length,), generator=generator).tolist() for length in LENGTHS]
    labels = [[NOT_LEARNED] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    return datasets.Dataset.from_dict({"input_ids": [[2, *row[1:]] for row in ids], "labels": labels})


@pytest.fixture(scope="module")
def packed(rows, tmp_path_factory):
    return pack(rows, MAX_LENGTH, tmp_path_factory.mktemp("packed"))


def build_trainer(model, packed, tiny, folder, micro_batch_size, matmul):
    config = RunConfig(
        trainer=TrainerConfig(
            packing=True,
            max_length=MAX_LENGTH,
            micro_batch_size=micro_batch_size,
            global_batch_size=micro_batch_size,
            gradient_checkpointing=False,
        )
    )
    cpu = Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)
    alone = Layout(world_size=1, rank=0, accumulation=1, method=ParallelMethod.single)
    precision = Precision(device=cpu, dtype=Dtype.fp32, attention=Attention.sdpa, reasons=())
    arguments = build_arguments(
        config,
        layout=alone,
        precision=precision,
        family=FAMILIES[0],
        output_dir=folder,
        evaluates=False,
    )
    return RunTrainer(
        layout=alone,
        precision=precision,
        run=RunFolder(folder),
        guard=StepGuard(SimpleNamespace(rows=packed)),
        loss_head=LossHead(LossHeadMethod.chunked, 16),
        matmul=matmul,
        checkpoints_kept=None,
        model=model,
        args=arguments,
        train_dataset=packed,
        processing_class=transformers.AutoTokenizer.from_pretrained(tiny),
    )


@pytest.fixture(
    scope="module", params=[(1, CpuMatmul.default), (2, CpuMatmul.default), (2, CpuMatmul.onednn)], ids=str
)
def trainer(request, model, packed, tiny, tmp_path_factory):
    return build_trainer(model, packed, tiny, tmp_path_factory.mktemp("run"), *request.param)


@pytest.fixture(scope="module")
def batches(trainer):
    return [dict(batch) for batch in trainer.get_train_dataloader()]


def learn(trainer, batches):
    """Return the loss over all batches, weighted by tokens, and the gradient of every weight."""
    model = trainer.model.train()
    model.zero_grad()
    tokens = sum((batch["labels"][:, 1:] != NOT_LEARNED).sum() for batch in batches)
    total = torch.zeros(())
    for batch in batches:
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=tokens)
        loss.backward()
        total += loss.detach()
    return total, {name: value.grad.clone() for name, value in model.named_parameters()}


def read(model, batch):
    """Return the logits of a batch, without what only a loss needs."""
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits[0]


def documents(batch):
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
    return list(pairwise(starts))


def test_every_row_stands_whole_in_one_sequence(rows, packed):
    whole = []
    for sequence in packed:
        assert len(sequence["input_ids"]) == sum(sequence["seq_lengths"]) <= MAX_LENGTH
        start = 0
        for length in sequence["seq_lengths"]:
            stretch = slice(start, start + length)
            whole.append((sequence["input_ids"][stretch], sequence["labels"][stretch]))
            start += length
    assert sorted(whole) == sorted((row["input_ids"], row["labels"]) for row in rows)


def test_packing_is_found_again_for_the_same_rows_and_length_only(rows, packed, tmp_path):
    first, again = (pack(rows, MAX_LENGTH, tmp_path) for _ in range(2))
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    assert first[:] == again[:] == packed[:]
    longer, fewer = pack(rows, MAX_LENGTH + 30, tmp_path), pack(rows.select(range(5)), MAX_LENGTH, tmp_path)
    assert len(list(tmp_path.glob("*.arrow"))) == 3
    assert max(map(sum, longer["seq_lengths"])) > MAX_LENGTH
    assert sum(map(len, fewer["seq_lengths"])) == 5


def test_its_efficiency_is_the_share_of_the_places_that_hold_a_token(packed):
    said = describe_packing(packed, sum(LENGTHS), MAX_LENGTH)
    assert said == {"sequences": 4, "efficiency": sum(LENGTHS) / (4 * MAX_LENGTH)}


def test_the_trainer_flattens_sequences_and_tells_rows_apart_by_positions_alone(trainer, batches, rows):
    assert all(len(batch["input_ids"]) == 1 and "attention_mask" not in batch for batch in batches)
    ends = [end - start for batch in batches for start, end in documents(batch)]
    assert sorted(ends) == sorted(LENGTHS)
    assert trainer.args.packing_strategy == "bfd"


def test_packed_rows_have_the_loss_and_the_gradients_of_rows_one_by_one(trainer, batches, rows):
    loss, gradients = learn(trainer, batches)
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    alone, expected = learn(trainer, [collate([row]) for row in rows])
    padded, _ = learn(trainer, [collate(list(rows))])
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss, padded, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        assert expected[name].abs().max() > 0, name
        distance = (gradient - expected[name]).norm() / expected[name].norm()
        assert distance < 1e-5, (name, distance)


def test_another_row_in_the_sequence_changes_no_logit(trainer, batches):
    for batch in batches:
        before = read(trainer.model, batch)
        for start, end in documents(batch):
            ids = batch["input_ids"].clone()
            ids[0, start:end] = ids[0, start:end].flip(0)
            change = (read(trainer.model, batch | {"input_ids": ids}) - before).abs().amax(dim=-1)
            assert change[start:end].min() > 1e-3
            assert max([*change[:start], *change[end:]], default=0) == 0


def test_without_the_positions_rows_would_see_each_other_and_the_loss_would_show_it(trainer, batches):
    bare = [
        {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
        for ids, labels in ((batch["input_ids"], batch["labels"]) for batch in batches)
    ]
    place = next(place for place, batch in enumerate(batches) if len(documents(batch)) > 1)
    (_, end), (start, _) = documents(batches[place])[:2]
    ids = bare[place]["input_ids"].clone()
    ids[0, end - 3 : end] += 1
    change = read(trainer.model, bare[place] | {"input_ids": ids}) - read(trainer.model, bare[place])
    assert change[start:].abs().max() > 1e-3
    (loss, _), (wrong, _) = learn(trainer, batches), learn(trainer, bare)
    assert abs(wrong / loss - 1) > 1e-4


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split", "bfd"])
def test_no_other_packing_can_be_asked_for(strategy):
    config = RunConfig(trainer=TrainerConfig(packing=True, extra={"packing_strategy": strategy}))
    with pytest.raises(
        ConfigError,
        match=rf"trainer\.extra\.packing_strategy={strategy} is bfd, the only one that keeps rows",
    ):
        check_config(config)


def test_wrapped_packing_would_tear_rows_apart_and_tell_none(rows):
    wrapped = trl.pack_dataset(rows, MAX_LENGTH, strategy="wrapped")
    assert "seq_lengths" not in wrapped.column_names
    assert any(sequence["input_ids"][0] != 2 for sequence in wrapped)


def test_a_full_disk_is_told_in_one_line(monkeypatch, tmp_path):
    def full(*what, **how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trl, "pack_dataset", full)
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 5]], "labels": [[-100, 5]]})
    with pytest.raises(DataError, match=r"cannot hold the packed sequences \(No space left on device\)\."):
        pack(rows, 8, tmp_path)
