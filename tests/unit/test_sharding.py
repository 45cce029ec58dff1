"""Sharded runs: their settings, what they refuse, and what their checkpoints hold."""

import json
import os
import re
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import fully_shard

from gemma_ft.config.checks import find_problems
from gemma_ft.config.schema import (
    AdapterMethod,
    Attention,
    Dtype,
    ParallelConfig,
    ParallelMethod,
    QuantizationMethod,
    RunConfig,
)
from gemma_ft.errors import ConfigError, RunError, TrainingError
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.loading import _read_by_one, build_quantization
from gemma_ft.modeling.precision import Device, Precision
from gemma_ft.training import sharded_state
from gemma_ft.training.checkpoints import check_form
from gemma_ft.training.guard import all_finite, weights_of
from gemma_ft.training.layout import Layout
from gemma_ft.training.sharded_state import gather_weights, load_optimizer, load_weights, save_shards
from gemma_ft.training.sharding import build_sharding, check_cuts, check_sharded, keep_sums_exact

_EMBEDDING = "embed_tokens.weight"
FOUR = Layout(world_size=4, rank=0, accumulation=1, method=ParallelMethod.fsdp)
CPU = Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)


def config(adapter=AdapterMethod.lora, **parallel) -> RunConfig:
    made = RunConfig(parallel=ParallelConfig(method=ParallelMethod.fsdp, **parallel))
    made.adapter.method = adapter
    return made


def precision(dtype) -> Precision:
    return Precision(device=CPU, dtype=dtype, attention=Attention.sdpa, reasons=())


@pytest.mark.parametrize(("adapter", "by_fsdp"), [(AdapterMethod.none, True), (AdapterMethod.lora, False)])
def test_fsdp_recomputes_activations_in_full_fine_tunes_only(adapter, by_fsdp):
    settings = build_sharding(config(adapter), FOUR, precision(Dtype.fp32), FAMILIES[0])["fsdp_config"]
    assert settings["activation_checkpointing"] is by_fsdp
    assert settings["version"] == 2
    assert settings["transformer_layer_cls_to_wrap"] == ["GemmaDecoderLayer"]
    assert settings["cpu_offload"] is False


def test_shard_groups_smaller_than_the_world_hold_copies():
    mesh = build_sharding(config(dp_shard_size=2), FOUR, precision(Dtype.fp32), FAMILIES[0])[
        "parallelism_config"
    ]
    assert (mesh.dp_replicate_size, mesh.dp_shard_size) == (2, 2)
    assert "parallelism_config" not in build_sharding(
        config(dp_shard_size=4), FOUR, precision(Dtype.fp32), FAMILIES[0]
    )
    assert (
        build_sharding(config(cpu_offload=True), FOUR, precision(Dtype.fp32), FAMILIES[0])["fsdp_config"][
            "cpu_offload"
        ]
        is True
    )


def test_other_layouts_shard_nothing():
    copies = Layout(world_size=4, rank=0, accumulation=1, method=ParallelMethod.ddp)
    assert build_sharding(config(), copies, precision(Dtype.fp32), FAMILIES[0]) == {}


@pytest.mark.parametrize("dtype", [Dtype.bf16, Dtype.fp16])
def test_losses_and_gradients_are_summed_in_fp32(dtype):
    plugin = SimpleNamespace(mixed_precision_policy="accelerate's")
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    keep_sums_exact(accelerator, precision(Dtype.fp32))
    assert plugin.mixed_precision_policy == "accelerate's"
    keep_sums_exact(accelerator, precision(dtype))
    policy = plugin.mixed_precision_policy
    assert policy.param_dtype is precision(dtype).torch_dtype
    assert (policy.reduce_dtype, policy.output_dtype) == (torch.float32, torch.float32)


def test_4_bit_weights_are_stored_as_numbers_that_can_be_cut():
    settings = config().quantization
    settings.method = QuantizationMethod.nf4
    assert build_quantization(settings, torch.bfloat16).bnb_4bit_quant_storage is torch.uint8
    sharded = build_quantization(settings, torch.bfloat16, sharded=True)
    assert sharded.bnb_4bit_quant_storage is torch.bfloat16


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda c: setattr(c.quantization, "method", QuantizationMethod.int8),
            "^quantization=int8 cannot be",
        ),
        (lambda c: setattr(c.parallel, "dp_shard_size", 1), "^parallel.dp_shard_size=1 must be at least 2"),
        (
            lambda c: setattr(c, "parallel", ParallelConfig(cpu_offload=True)),
            "^parallel.cpu_offload=true needs shards, but parallel=auto has none. Use parallel=fsdp_offload",
        ),
        (
            lambda c: setattr(c, "parallel", ParallelConfig(dp_shard_size=2)),
            "^parallel.dp_shard_size=2 needs shards, but parallel=auto has none. Add parallel=fsdp",
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused(change, line):
    wrong = config()
    change(wrong)
    assert [problem for problem in find_problems(wrong) if re.search(line, problem)]
    assert not [problem for problem in find_problems(config()) if re.search(line, problem)]


@pytest.mark.parametrize(
    ("optim", "fits"),
    [
        ("adamw_torch", True),
        ("adamw_torch_fused", True),
        ("paged_adamw_32bit", True),
        ("sgd", True),
        ("rmsprop", True),
        ("adamw_8bit", False),
        ("adamw_bnb_8bit", False),
        ("paged_adamw_8bit", False),
        ("paged_lion_32bit", False),
        ("adafactor", False),
        ("adagrad", False),
    ],
)
def test_optimizers_that_cannot_step_on_shards_are_refused_by_the_name_they_were_given(optim, fits):
    asked = config()
    asked.trainer.optim = optim
    said = f"trainer.optim={optim} cannot step on the shards of parallel=fsdp. Use trainer.optim=adamw_torch"
    assert any(line.startswith(said) for line in find_problems(asked)) is not fits


@pytest.mark.parametrize(
    ("settings", "fits"),
    [({"modules_to_save": ["embed_tokens"]}, False), ({"modules_to_save": None}, True), ({}, True)],
)
def test_adapters_that_train_whole_modules_are_refused(tmp_path, settings, fits):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    asked = config()
    asked.adapter.path = str(tmp_path)
    said = f"adapter.path={tmp_path} trains embed_tokens whole beside its matrices"
    assert any(line.startswith(said) for line in find_problems(asked)) is not fits


def test_recomputing_settings_that_fsdp_does_not_read_are_refused():
    wrong = config(AdapterMethod.none)
    wrong.trainer.extra = {"activation_checkpointing_kwargs": {"use_reentrant": False}}
    assert any("is nothing that parallel=fsdp reads" in line for line in find_problems(wrong))
    wrong.adapter.method = AdapterMethod.lora
    assert not any("is nothing that parallel=fsdp reads" in line for line in find_problems(wrong))


def test_shards_that_only_the_launcher_asked_for_are_refused_alike():
    asked = RunConfig()
    asked.quantization.method = QuantizationMethod.int8
    assert not any("cannot be sharded" in line for line in find_problems(asked))
    with pytest.raises(ConfigError, match=r"^quantization=int8 cannot be sharded"):
        check_cuts(asked, FOUR, SimpleNamespace(config={}), precision(Dtype.fp32))


@pytest.mark.parametrize(("inner", "fits"), [(130, False), (132, True)])
def test_4_bit_layers_must_fill_whole_numbers_of_their_storage(inner, fits):
    asked = config()
    asked.quantization.method = QuantizationMethod.nf4
    sizes = {"hidden_size": 66, "intermediate_size": inner, "head_dim": 8, "num_attention_heads": 4}
    checkpoint = SimpleNamespace(path="odd", config={**sizes, "num_key_value_heads": 2})
    if fits:
        check_cuts(asked, FOUR, checkpoint, precision(Dtype.fp32))
        return
    with pytest.raises(
        ConfigError, match=r"model.path=odd has layers of 130 x 66 weights, no multiple of 8\."
    ):
        check_cuts(asked, FOUR, checkpoint, precision(Dtype.fp32))


def test_a_torch_that_cannot_save_shards_is_refused(monkeypatch):
    from torch.distributed.checkpoint import hf_storage

    monkeypatch.setattr(hf_storage, "HuggingFaceStorageWriter", lambda path: None)
    with pytest.raises(ConfigError, match=r"^parallel=fsdp cannot write .* torch .*pip install --upgrade"):
        check_cuts(config(), FOUR, SimpleNamespace(config={}), precision(Dtype.fp32))


def test_gradients_in_memory_are_summed_by_a_backend_for_it():
    gpu = Device(kind="cuda", name="GPU", bf16=True, flash_attention=False)
    on_gpu = Precision(device=gpu, dtype=Dtype.bf16, attention=Attention.sdpa, reasons=())
    assert build_sharding(config(cpu_offload=True), FOUR, on_gpu, FAMILIES[0])["ddp_backend"] == (
        "cuda:nccl,cpu:gloo"
    )
    assert "ddp_backend" not in build_sharding(config(), FOUR, on_gpu, FAMILIES[0])


def test_a_model_that_was_left_whole_stops_the_run():
    with pytest.raises(
        TrainingError, match=r"^parallel=fsdp left 2 of the model's weights whole, weight among"
    ):
        check_sharded(torch.nn.Linear(4, 4))


def test_only_loading_sees_the_variables_that_have_one_process_read(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "no")
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    with _read_by_one(True):
        assert (os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]) == (
            "true",
            "true",
        )
    assert os.environ["ACCELERATE_USE_FSDP"] == "no"
    assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}.group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Tied(torch.nn.Module):
    """An embedding that is the head too, and a frozen layer between them."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(8, 4)
        self.frozen = torch.nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        torch.nn.init.eye_(self.frozen.weight)
        torch.nn.init.zeros_(self.frozen.bias)
        self.lm_head = torch.nn.Linear(4, 8, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids):
        return self.lm_head(self.frozen(self.embed_tokens(ids)))


def trained(optimizer, seed=0):
    torch.manual_seed(seed)
    model = Tied()
    fully_shard(model)
    weights = [value for value in model.parameters() if value.requires_grad]
    made = optimizer([{"params": weights, "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}])
    for _ in range(3):
        learn(model, made)
    return model, made


def learn(model, optimizer):
    model(torch.arange(8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "optimizer",
    [lambda groups: torch.optim.AdamW(groups, lr=0.1), lambda groups: torch.optim.SGD(groups, lr=0.1)],
)
def test_a_sharded_checkpoint_brings_back_weights_and_optimizer(process_group, tmp_path, optimizer):
    model, made = trained(optimizer)
    save_shards(model, made, tmp_path, writes=True)
    other, empty = trained(optimizer, seed=1)
    load_weights(other, tmp_path)
    load_optimizer(other, empty, tmp_path)
    assert torch.equal(gather_weights(other)[_EMBEDDING], gather_weights(model)[_EMBEDDING])
    for both in ((model, made), (other, empty)):
        both[0](torch.arange(8)).square().sum().backward()
        both[1].step()
    assert torch.equal(gather_weights(other)[_EMBEDDING], gather_weights(model)[_EMBEDDING])


def test_a_sharded_checkpoint_holds_trained_weights_once_as_safetensors(process_group, tmp_path):
    from safetensors import safe_open

    model, made = trained(lambda groups: torch.optim.AdamW(groups, lr=0.1))
    save_shards(model, made, tmp_path, writes=True)
    names = []
    for file in tmp_path.glob("weights/*"):
        with safe_open(file, framework="pt") as tensors:
            names += list(tensors.keys())
    assert names == [_EMBEDDING]
    assert list(gather_weights(model)) == [_EMBEDDING]
    model.embed_tokens.requires_grad_(False)  # as under adapters
    assert list(gather_weights(model)) == []
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    kept = json.loads((tmp_path / "optimizer.json").read_text())
    assert kept["state"][_EMBEDDING]["step"] == 3.0


def test_what_is_not_finite_is_found_in_shards_but_codes_of_4_bit_weights_are_no_numbers(process_group):
    model, _ = trained(lambda groups: torch.optim.AdamW(groups, lr=0.1))
    assert all_finite(weights_of(model))
    with torch.no_grad():
        model.frozen.weight.to_local()[0, 0] = float("nan")
    assert not all_finite(weights_of(model))
    model.frozen.quant_state = None  # as bitsandbytes' layers have it
    assert all_finite(weights_of(model))


def test_a_save_that_fails_says_so_in_its_own_words(process_group, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise CheckpointException("save", {1: (OSError(28, "No space left on device"), None)})

    model, made = trained(lambda groups: torch.optim.AdamW(groups, lr=0.1))
    monkeypatch.setattr(sharded_state, "save", fail)
    with pytest.raises(OSError, match="No space left on device"):
        save_shards(model, made, tmp_path, writes=True)


@pytest.mark.parametrize(("sharded", "said"), [(True, "was saved whole"), (False, "was saved in shards")])
def test_a_checkpoint_of_the_other_form_is_refused(tmp_path, sharded, said):
    other, own = tmp_path / "other", tmp_path / "own"
    for folder, has_shards in ((other, not sharded), (own, sharded)):
        folder.mkdir()
        if has_shards:
            (folder / "weights").mkdir()
    check_form(own, sharded=sharded)
    with pytest.raises(RunError, match=said):
        check_form(other, sharded=sharded)
