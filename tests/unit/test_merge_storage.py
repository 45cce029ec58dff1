"""The base as training held it, against transformers' own quantised models, and merges onto it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from export_models import build_adapter, build_base, differing, edit_tensors, read_weights

from gemma_ft.config.schema import QuantizationConfig, QuantizationMethod
from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging import held_rows, row_blocks
from gemma_ft.exporting.merging.merge import plan_merge, write_merge
from gemma_ft.exporting.merging.storage import TrainedStorage, is_quantised, load_as_trained
from gemma_ft.exporting.merging.tensor_files import read_checkpoint, read_header
from gemma_ft.modeling.libraries import quiet_bitsandbytes
from gemma_ft.modeling.loading import build_quantization

GB = 10**9
METHODS = {"nf4": ("nf4", False), "nf4 double": ("nf4", True), "int8": ("int8", False)}
FAMILIES = ("gemma", "gemma2", "gemma3_text")


def storage_of(method, dtype="bfloat16"):
    name, double_quant = METHODS[method]
    return TrainedStorage(method=QuantizationMethod(name), double_quant=double_quant, dtype=dtype)


def load_quantised(base, storage):
    import transformers

    quiet_bitsandbytes()
    dtype = getattr(torch, storage.dtype)
    settings = QuantizationConfig(method=storage.method, double_quant=storage.double_quant)
    return transformers.AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=build_quantization(settings, dtype),
    )


def merge_by_peft(base, adapter, storage, exact=False):
    import peft

    model = load_quantised(base, storage).dequantize()
    if exact:
        model = model.float()
    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(model_type="gemma", dtype="bfloat16", tied=True):
        key = (model_type, dtype, tied)
        if key not in made:
            made[key] = build_base(tmp_path_factory.mktemp("base"), model_type, dtype, tied=tied)
        return made[key]

    return base


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_quantised_tensors_are_those_that_transformers_quantises(model_type, tied, bases):
    base, storage = bases(model_type, tied=tied), storage_of("nf4")
    quantised = {
        f"{name}.weight"
        for name, module in load_quantised(base, storage).named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    tensors = read_checkpoint(base)
    assert {name for name in tensors if is_quantised(name, storage)} == quantised
    assert len(quantised) == 14
    assert not any(is_quantised(name, None) for name in tensors)


def assert_held_as_by_transformers(base, storage):
    expected = load_quantised(base, storage).dequantize().state_dict()
    before = read_weights(base)
    for name, tensor in read_checkpoint(base).items():
        out = torch.empty(tensor.shape, dtype=getattr(torch, storage.dtype))
        load_as_trained(tensor, storage, out)
        assert torch.equal(out, expected[name]), name
        assert is_quantised(name, storage) != torch.equal(out, before[name].to(out.dtype)), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_base_is_held_as_transformers_dequantises_it(method, dtype, bases):
    assert_held_as_by_transformers(bases(), storage_of(method, dtype))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", FAMILIES[1:])
def test_later_generations_are_held_as_transformers_dequantises_them(model_type, method, bases):
    assert_held_as_by_transformers(bases(model_type), storage_of(method))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_base_in_single_precision_is_cast_to_what_training_computed_in(method, dtype, bases):
    assert_held_as_by_transformers(bases(dtype="float32"), storage_of(method, dtype))


def test_unquantised_base_is_held_as_it_is(bases):
    for tensor in read_checkpoint(bases()).values():
        out = torch.empty(tensor.shape)
        load_as_trained(tensor, None, out)
        assert torch.equal(out, read_weights(bases())[tensor.name].float())


def save_weight(folder, weight):
    from safetensors.torch import save_file

    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: weight}, folder / "model.safetensors")
    return read_header(folder / "model.safetensors")[name]


def dequantise_whole(weight, storage):
    """What bitsandbytes makes of a whole weight, as its own layers call it."""
    import bitsandbytes as bnb

    if storage.method is QuantizationMethod.int8:
        held = bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")
        return bnb.functional.int8_vectorwise_dequant(held.data, held.SCB).to(weight.dtype)
    held = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=storage.double_quant
    ).to("cpu")
    return bnb.functional.dequantize_4bit(held.data, held.quant_state)


@pytest.mark.parametrize("shape", [(100, 24), (65, 80), (41, 128), (1, 64), (300, 192), (33, 14)])
@pytest.mark.parametrize("method", METHODS)
def test_division_into_blocks_never_changes_a_bit(method, shape, tmp_path, monkeypatch):
    quiet_bitsandbytes()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    tensor, storage = save_weight(tmp_path, weight), storage_of(method)
    out = torch.empty(shape, dtype=torch.bfloat16)
    for elements in (1 << 17, 1024):
        monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", elements)
        load_as_trained(tensor, storage, out.fill_(7))
        assert torch.equal(out, dequantise_whole(weight, storage)), elements


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_mean_of_the_scales_is_summed_by_as_many_threads_as_the_model_would_use(threads):
    for seed in range(100):
        scales = torch.rand(300_000, generator=torch.Generator().manual_seed(seed))
        torch.set_num_threads(2)
        by_two = scales.mean()
        torch.set_num_threads(1)
        if scales.mean() != by_two:
            break
    else:
        pytest.fail("no sum depends on the threads here")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(held_rows._through_8bit, scales.clone(), 2).result()
    assert not torch.equal(found, held_rows._through_8bit(scales.clone(), 1))
    assert torch.equal(found, held_rows._through_8bit(scales.clone(), 2))
    assert torch.get_num_threads() == 1


FROM_TWO_THREADS = """
import sys, threading, time, torch
from pathlib import Path
from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.merging.storage import TrainedStorage, load_as_trained
from gemma_ft.exporting.merging.tensor_files import read_header

(tensor,) = read_header(Path(sys.argv[1])).values()
storage = TrainedStorage(method=QuantizationMethod.nf4, double_quant=True, dtype="bfloat16")
def fill(out):
    load_as_trained(tensor, storage, out)

outs = [torch.full(tensor.shape, 7.0) for _ in range(2)]
thread = threading.Thread(target=fill, args=outs[:1])
assert "bitsandbytes" not in sys.modules
thread.start()
while not hasattr(sys.modules.get("bitsandbytes.functional"), "dequantize_4bit"):
    time.sleep(0)
fill(outs[1])
thread.join()
print(torch.equal(*outs), float(outs[0].abs().max()))
"""


def test_bitsandbytes_is_not_used_while_another_thread_still_imports_it(tmp_path):
    save_weight(tmp_path, torch.eye(64, dtype=torch.bfloat16))
    command = [sys.executable, "-c", FROM_TWO_THREADS, str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1.0"]
    assert done.stderr == ""


KINDS = {"lora": {}, "rslora": {"use_rslora": True, "r": 6}, "dora": {"use_dora": True}}


def assert_merges_like_peft(base, adapter, storage, merged, exact=False):
    plan = plan_merge(base, adapter, storage)
    report = write_merge(plan, merged, shard_bytes=GB)
    found, before = read_weights(merged), read_weights(base)
    expected = merge_by_peft(base, adapter, storage, exact)
    assert found.keys() == before.keys()
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert differing(found, {name: expected[name].to(before[name].dtype) for name in found}) == {}
    assert differing(found, before).keys() == plan.touched
    assert report.changed == len(plan.touched) == 14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_merge_onto_what_training_held_equals_peft_on_the_dequantised_model(
    model_type, method, kind, bases, tmp_path
):
    base = bases(model_type)
    adapter = build_adapter(base, tmp_path / "adapter", **KINDS[kind])
    assert_merges_like_peft(base, adapter, storage_of(method), tmp_path / "merged")


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", "float16"), ("float32", "bfloat16")])
def test_result_is_rounded_once_to_the_format_of_its_base(stored, dtype, method, kind, bases, tmp_path):
    base = bases(dtype=stored)
    adapter = build_adapter(base, tmp_path / "adapter", **KINDS[kind])
    assert_merges_like_peft_in_layers(base, adapter, storage_of(method, dtype), tmp_path / "merged")


def assert_merges_like_peft_in_layers(base, adapter, storage, merged):
    write_merge(plan_merge(base, adapter, storage), merged, shard_bytes=GB)
    found, before = read_weights(merged), read_weights(base)
    expected = merge_by_peft(base, adapter, storage, exact=True)
    layers = [name for name in found if is_quantised(name, storage)]
    assert differing(found, {name: expected[name].to(before[name].dtype) for name in layers}, layers) == {}
    assert differing(found, before).keys() == set(layers)


@pytest.mark.parametrize("method", METHODS)
def test_layers_without_an_adapter_are_written_as_training_held_them(method, bases, tmp_path):
    storage = storage_of(method)
    adapter = build_adapter(bases(), tmp_path / "adapter", target_modules=["q_proj"])
    assert_merges_like_peft(bases(), adapter, storage, tmp_path / "merged")
    held = load_quantised(bases(), storage).dequantize().state_dict()
    found = read_weights(tmp_path / "merged")
    same = {name for name in found if torch.equal(found[name], held[name])}
    assert {name for name in found if name not in same} == {n for n in found if "q_proj" in n}


def test_merge_onto_the_original_base_is_another_one(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    for name, storage in (("trained", storage_of("nf4")), ("original", None)):
        write_merge(plan_merge(bases(), adapter, storage), tmp_path / name, shard_bytes=GB)
    different = differing(read_weights(tmp_path / "trained"), read_weights(tmp_path / "original"))
    assert len(different) == 14


def test_layers_in_a_format_that_cannot_be_quantised_are_refused(tmp_path):
    base = build_base(tmp_path / "base")
    adapter = build_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | {name: tensors[name].to(torch.int8)})
    plan_merge(base, adapter)
    with pytest.raises(
        ExportError, match=f"{name} is stored as I8, which cannot be merged into. Use the full"
    ):
        plan_merge(base, adapter, storage_of("int8"))


def test_merge_asks_for_the_threads_of_the_process(bases, tmp_path, monkeypatch, threads):
    seen = []
    monkeypatch.setattr(held_rows, "_through_8bit", lambda scales, count: seen.append(count) or scales)
    adapter = build_adapter(bases(), tmp_path / "adapter")
    torch.set_num_threads(3)
    write_merge(plan_merge(bases(), adapter, storage_of("nf4 double")), tmp_path / "merged", shard_bytes=GB)
    assert seen == [3] * 14


def test_rows_of_the_embedding_that_were_not_trained_stay_the_base_s_own(bases, tmp_path):
    base = bases(dtype="float32")
    adapter = build_adapter(base, tmp_path / "adapter", trainable_token_indices=[5, 9])
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {n: t + 0.1 if "trainable_tokens" in n else t for n, t in tensors.items()},
    )
    write_merge(plan_merge(base, adapter, storage_of("int8")), tmp_path / "merged", shard_bytes=GB)
    name = "model.embed_tokens.weight"
    different = (read_weights(tmp_path / "merged")[name] != read_weights(base)[name]).any(dim=1)
    assert different.nonzero().view(-1).tolist() == [5, 9]


def test_lora_on_an_embedding_is_added_to_what_training_held(bases, tmp_path):
    base = bases(dtype="float32", tied=False)
    adapter = build_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    storage = storage_of("int8")
    write_merge(plan_merge(base, adapter, storage), tmp_path / "merged", shard_bytes=GB)
    name = "model.embed_tokens.weight"
    expected = merge_by_peft(base, adapter, storage)[name]
    assert torch.equal(read_weights(tmp_path / "merged")[name].bfloat16(), expected)
