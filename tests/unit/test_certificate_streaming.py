"""Models that read each layer's weights when it runs, against transformers' and PEFT's own whole models."""

import functools

import peft
import pytest
import torch
import transformers
from export_models import FAMILY_BY_TYPE, build_adapter, build_base, edit_json, edit_tensors

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate import weights as certificate_weights
from gemma_ft.exporting.certificate.generation import (
    find_missing_stops,
    generate_greedily,
    load_generation_config,
)
from gemma_ft.exporting.certificate.measures import cap
from gemma_ft.exporting.certificate.passes import build_batch, open_folder, open_trained
from gemma_ft.exporting.certificate.products import widened_product
from gemma_ft.exporting.certificate.rows import CertificateRow
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.modeling.libraries import quiet_libraries

FAMILIES = ("gemma", "gemma2", "gemma3_text")


@pytest.fixture(scope="module", autouse=True)
def _without_gradients():
    quiet_libraries()
    with torch.no_grad():
        yield


@functools.cache
def rows():
    drawn = torch.randint(2, 105, (3, 33), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        CertificateRow(tuple(ids[:length]), (*[-100] * 5, *ids[5:length]))
        for ids, length in zip(drawn, (20, 33, 12), strict=True)
    ]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    @functools.cache
    def base(model_type="gemma", dtype="bfloat16", tied=True):
        folder = build_base(tmp_path_factory.mktemp("base"), model_type, dtype, tied=tied)
        if model_type == "gemma3_text":  # both kinds of attention, and a window that the rows leave
            edit_json(
                folder / "config.json",
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            )
        return folder

    return base


def load(base, dtype=torch.float32, **settings):
    attention = "eager" if "eager" in FAMILY_BY_TYPE[type_of(base)].attention[1:2] else "sdpa"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation=attention, **settings
    )
    return model.eval()


def type_of(base):
    return transformers.AutoConfig.from_pretrained(base).model_type


def logits_of(model):
    batch = build_batch(rows())
    return model(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.asked]


def streamed_logits(streamed):
    side = streamed.side(build_batch(rows()).states(streamed))
    return torch.cat([cap(part, side.softcap) for _, _, part in side.head.parts(side.states)], dim=1)


KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 8},
        "alpha_pattern": {"v_proj": 3},
    },
    "dora on some layers": {"use_dora": True, "target_modules": ["down_proj"], "layers_to_transform": [1]},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "embedding saved, head tied to it": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms saved": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [5, 3, 100]},
}
UNTIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "dora on the head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding and head saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens of the embedding": {"trainable_token_indices": {"embed_tokens": [5, 3]}},
}


def shake(adapter):
    """Move what was saved whole away from the base's."""

    def moved(value):  # the same for a head and the embedding that it is tied to
        return value + 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))

    def change(tensors):
        return {
            name: value if "lora_" in name else moved(value)
            for name, value in tensors.items()
            if ".base_layer." not in name
        }

    edit_tensors(adapter / "adapter_model.safetensors", change)
    return adapter


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_unmerged_model_equals_peft_in_every_bit(kind, model_type, bases, tmp_path):
    base = bases(model_type)
    adapter = shake(build_adapter(base, tmp_path / "adapter", **KINDS[kind]))
    expected = logits_of(peft.PeftModel.from_pretrained(load(base), adapter))
    assert torch.equal(streamed_logits(open_trained(base, adapter, None)), expected)
    assert (expected - logits_of(load(base))).abs().max() > 0.01


@pytest.mark.parametrize("model_type", ["gemma", "gemma3_text"])
@pytest.mark.parametrize("kind", UNTIED)
def test_unmerged_model_of_an_untied_base_equals_peft(kind, model_type, bases, tmp_path):
    base = bases(model_type, tied=False)
    adapter = shake(build_adapter(base, tmp_path / "adapter", **UNTIED[kind]))
    expected = logits_of(peft.PeftModel.from_pretrained(load(base), adapter))
    assert torch.equal(streamed_logits(open_trained(base, adapter, None)), expected)


@pytest.mark.parametrize("kind", ["lora", "dora", "tokens"])
def test_blocks_of_rows_give_the_same_model(kind, bases, tmp_path, monkeypatch):
    adapter = shake(build_adapter(bases(), tmp_path / "adapter", **KINDS[kind]))
    expected = streamed_logits(open_trained(bases(), adapter, None))
    monkeypatch.setattr(certificate_weights, "BLOCK_ELEMENTS", 1024)
    assert torch.allclose(streamed_logits(open_trained(bases(), adapter, None)), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_whole_folder_equals_transformers(model_type, stored, dtype, bases):
    base = bases(model_type, stored)
    assert torch.equal(streamed_logits(open_folder(base, dtype)), logits_of(load(base, dtype)))


def test_full_fine_tune_is_read_from_its_own_folder(bases):
    other = bases(dtype="float32")
    assert torch.equal(streamed_logits(open_trained(bases(), other, None)), logits_of(load(other)))


def test_copy_of_a_tied_head_is_not_read(bases, tmp_path):
    base = build_base(tmp_path / "base")
    expected = streamed_logits(open_folder(base))
    edit_tensors(
        base / "model.safetensors",
        lambda tensors: tensors | {"lm_head.weight": torch.zeros_like(tensors["model.embed_tokens.weight"])},
    )
    assert torch.equal(streamed_logits(open_folder(base)), expected)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_quantised_model_equals_bitsandbytes_own(method, dora, bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter", use_dora=dora)
    settings = (
        transformers.BitsAndBytesConfig(load_in_8bit=True)
        if method == "int8"
        else transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    )
    model = peft.PeftModel.from_pretrained(load(bases(), quantization_config=settings), adapter)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    storage = TrainedStorage(method=QuantizationMethod(method), double_quant=True, dtype="float32")
    streamed = streamed_logits(open_trained(bases(), adapter, storage, int8_arithmetic=True))
    expected = logits_of(model)
    assert torch.allclose(streamed, expected, atol=1e-4)
    plain = streamed_logits(open_trained(bases(), adapter, None))
    assert (plain - expected).abs().max() > 100 * (streamed - expected).abs().max()


def test_int8_arithmetic_quantises_activations_too(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    storage = TrainedStorage(method=QuantizationMethod.int8, double_quant=False, dtype="bfloat16")
    with_activations = streamed_logits(open_trained(bases(), adapter, storage, int8_arithmetic=True))
    without = streamed_logits(open_trained(bases(), adapter, storage))
    assert 1e-4 < (with_activations - without).abs().mean() < 0.1


def test_bf16_products_are_the_same_on_every_processor():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((9, 64), (32, 64)))
    bias = torch.ones(32).bfloat16()
    expected = torch.nn.functional.linear(x, weight, bias)
    assert torch.allclose(widened_product(x, weight, bias), expected, rtol=2**-7)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_generation_equals_that_of_the_whole_model(model_type, bases):
    base = bases(model_type)
    settings = load_generation_config(base)
    prompts = [row.input_ids[:length] for row, length in zip(rows(), (11, 20, 5), strict=True)]
    streamed = generate_greedily(open_folder(base).model, settings, prompts, 6)
    whole = generate_greedily(load(base), settings, prompts, 6)
    assert streamed == whole
    assert [len(answer.generated) for answer in whole] == [6, 6, 6]


def test_stop_tokens_that_do_not_stop_are_found(bases, tmp_path):
    base = build_base(tmp_path / "base")
    edit_json(base / "generation_config.json", eos_token_id=[1], pad_token_id=0)
    model = open_folder(base).model
    assert find_missing_stops(model, load_generation_config(base), (2, 9, 4), [107, 1]) == [107]
    edit_json(base / "generation_config.json", eos_token_id=[1, 107])
    assert find_missing_stops(model, load_generation_config(base), (2, 9, 4), [107, 1]) == []


def test_sampling_settings_of_the_folder_are_switched_off(tmp_path):
    base = build_base(tmp_path / "base")
    edit_json(base / "generation_config.json", do_sample=True, temperature=0.7, top_k=64, top_p=0.95)
    settings = load_generation_config(base)
    prompts = [(2, 9, 4)]
    model = open_folder(base).model
    assert generate_greedily(model, settings, prompts, 4) == generate_greedily(model, settings, prompts, 4)
    assert not settings.do_sample


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors | {"model.extra.weight": torch.ones(2, 2)},
            r"model\.extra\.weight with shape \(2, 2\) on disk, and none in",
        ),
        (
            lambda tensors: {n: t for n, t in tensors.items() if n != "model.norm.weight"},
            r"model\.norm\.weight with shape none on disk, and \(64,\) in",
        ),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(3)},
            r"model\.norm\.weight with shape \(3,\) on disk",
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(change, message, tmp_path):
    base = build_base(tmp_path / "base")
    edit_tensors(base / "model.safetensors", change)
    with pytest.raises(ExportError, match=message):
        open_folder(base)


def test_adapter_tensors_that_peft_has_no_place_for_are_refused(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    name = "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors | {name: torch.ones(4, 64)})
    with pytest.raises(ExportError, match=r"does not know what the adapter's .*layers\.9\..* is for"):
        open_trained(bases(), adapter, None)


def test_adapters_that_lack_a_tensor_are_refused(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {n: t for n, t in tensors.items() if "layers.1.mlp.up_proj.lora_B" not in n},
    )
    with pytest.raises(
        ExportError, match=r"misses model\.layers\.1\.mlp\.up_proj\.lora_B\.weight in the adapter"
    ):
        open_trained(bases(), adapter, None)


def test_trained_rows_that_no_setting_names_are_refused(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter", trainable_token_indices=[5, 3])
    edit_json(adapter / "adapter_config.json", trainable_token_indices={"lm_head": [5, 3]})
    with pytest.raises(
        ExportError, match=r"trained rows of model\.embed_tokens, which trainable_token_indices"
    ):
        open_trained(bases(), adapter, None)
