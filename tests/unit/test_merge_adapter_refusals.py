"""An adapter whose tensors no merge can take over rightly is refused, whatever their kind."""

import shutil

import pytest
import torch
from export_models import VOCABULARY, build_adapter, build_base, edit_json, edit_tensors

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.merge import merge_checkpoint

MODEL = "base_model.model."
Q = f"{MODEL}model.layers.1.self_attn.q_proj"
EMBEDDING, HEAD = f"{MODEL}model.embed_tokens", f"{MODEL}lm_head"
ROWS = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(**settings):
        key = tuple(settings.items())
        if key not in made:
            made[key] = build_base(tmp_path_factory.mktemp("base"), **settings)
        return made[key]

    return base


@pytest.fixture(scope="module")
def adapters(bases, tmp_path_factory):
    """Build each adapter once, and lend copies of it."""
    made = {}

    def adapter(folder, base, **settings):
        key = repr((base, settings))
        if key not in made:
            settings = {"target_modules": ["q_proj"]} | settings
            made[key] = build_adapter(base, tmp_path_factory.mktemp("adapter"), **settings)
        return shutil.copytree(made[key], folder / "adapter")

    return adapter


def assert_refused(base, adapter, message):
    merged = adapter.parent / "merged"
    with pytest.raises(ExportError, match=message):
        merge_checkpoint(base, adapter, merged, shard_bytes=10**9)
    assert not merged.exists()


def edit(adapter, change):
    """Change the tensors of an adapter in place."""

    def changed(tensors):
        change(tensors)
        return tensors

    edit_tensors(adapter / "adapter_model.safetensors", changed)


@pytest.mark.parametrize("tying", [False, True])
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_lora_on_a_tied_embedding_or_head_is_refused_with_the_right_ways(
    module, tying, bases, adapters, tmp_path
):
    settings = {"target_modules": ["q_proj", module], "ensure_weight_tying": tying}
    adapter = adapters(tmp_path, bases(), **settings)
    assert_refused(
        bases(),
        adapter,
        r"target_modules names (model\.embed_tokens|lm_head), a weight that embedding and head share "
        r"\(tied\): no single .* \(modules_to_save=\[embed_tokens\], ensure_weight_tying=True\)",
    )


def test_tied_embedding_among_the_targets_is_refused_without_its_tensors_too(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit_json(adapter / "adapter_config.json", target_modules=r".*(q_proj|embed_tokens)")
    assert_refused(bases(), adapter, "target_modules names model.embed_tokens, a weight that .* share")


def test_dora_on_an_embedding_is_refused(bases, adapters, tmp_path):
    base = bases(tied=False)
    adapter = adapters(tmp_path, base, target_modules=["q_proj", "embed_tokens"], use_dora=True)
    assert_refused(
        base, adapter, r"use_dora=True scales the columns of model\.embed_tokens, which export cannot"
    )


@pytest.mark.parametrize(
    ("modules", "trained"),
    [
        (["embed_tokens"], "the embedding"),
        (["lm_head"], "the head"),
        (["embed_tokens", "lm_head"], "the two apart"),
    ],
)
def test_one_of_two_tied_weights_trained_alone_is_refused(modules, trained, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), modules_to_save=modules)
    assert_refused(
        bases(),
        adapter,
        rf"modules_to_save=.* trained {trained}, though embedding and head share one weight \(tied\); .*"
        r"lm_head\.weight, which vLLM and llama\.cpp refuse\. Train both as one: .*ensure_weight_tying=True",
    )


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_tied_weight_that_is_named_and_missing_is_refused(module, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit_json(adapter / "adapter_config.json", modules_to_save=[module])
    assert_refused(
        bases(), adapter, r"says that model\.embed_tokens\.weight was trained, but the adapter lacks it"
    )


def test_saved_module_that_is_missing_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), modules_to_save=["model.norm"])
    edit(adapter, lambda tensors: tensors.pop(f"{MODEL}model.norm.weight"))
    assert_refused(bases(), adapter, r"says that model\.norm\.weight was trained, but the adapter lacks it")


def test_bias_that_is_missing_is_refused(bases, adapters, tmp_path):
    base = bases(attention_bias=True)
    adapter = adapters(tmp_path, base, bias="lora_only")
    edit(adapter, lambda tensors: tensors.pop(f"{Q}.base_layer.bias"))
    assert_refused(base, adapter, r"says that model\.layers\.1\.self_attn\.q_proj\.bias was trained, but the")


def test_bias_that_no_setting_speaks_of_is_refused(bases, adapters, tmp_path):
    base = bases(attention_bias=True)
    adapter = adapters(tmp_path, base, bias="lora_only")
    edit_json(adapter / "adapter_config.json", bias="none")
    assert_refused(
        base, adapter, r"q_proj\.base_layer\.bias differs from the base's, and nothing in .* trained"
    )


def test_biases_of_lora_on_a_base_without_biases_are_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), lora_bias=True)
    assert_refused(
        bases(), adapter, r"lora_bias=True trained a bias for model\.\S+q_proj, which has none in the base"
    )


def test_biases_of_lora_that_no_setting_speaks_of_are_refused(bases, adapters, tmp_path):
    base = bases(attention_bias=True)
    adapter = adapters(tmp_path, base, lora_bias=True)
    edit_json(adapter / "adapter_config.json", lora_bias=False)
    assert_refused(base, adapter, r"the adapter has, without lora_bias, model\.\S+q_proj\.lora_B\.bias")


def test_saved_module_that_no_setting_speaks_of_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), modules_to_save=["model.norm"])
    edit_json(adapter / "adapter_config.json", modules_to_save=None)
    assert_refused(
        bases(), adapter, r"model\.norm\.weight differs from the base's, and nothing in adapter_config\.json"
    )


def test_copy_of_another_embedding_beside_its_lora_is_refused(bases, adapters, tmp_path):
    base = bases(tied=False)
    adapter = adapters(tmp_path, base, target_modules=["embed_tokens"])
    edit(adapter, lambda tensors: tensors[f"{EMBEDDING}.base_layer.weight"][7, 7].add_(1))
    assert_refused(base, adapter, r"embed_tokens\.base_layer\.weight differs from the base's")


def test_embedding_with_added_words_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    wider = torch.zeros(VOCABULARY + 2, 64)
    edit(adapter, lambda tensors: tensors.update({f"{EMBEDDING}.weight": wider}))
    assert_refused(bases(), adapter, r"embed_tokens\.weight differs from the base's, .* or words were added")


def test_copy_of_the_embedding_in_another_shape_is_refused(bases, adapters, tmp_path):
    base = bases(tied=False)
    adapter = adapters(tmp_path, base, target_modules=["embed_tokens"])
    name = f"{EMBEDDING}.base_layer.weight"
    edit(adapter, lambda tensors: tensors.update({name: tensors[name].view(64, -1)}))
    assert_refused(base, adapter, r"embed_tokens\.base_layer\.weight differs from the base's")


def test_copy_of_the_embedding_that_training_had_rounded_is_refused(bases, adapters, tmp_path):
    base = bases(tied=False, dtype="float32")
    adapter = adapters(tmp_path, base, target_modules=["embed_tokens"], base_dtype=torch.bfloat16)
    assert_refused(base, adapter, r"embed_tokens\.base_layer\.weight differs from .* another number format")


def test_module_saved_within_another_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), modules_to_save=["mlp", "up_proj"])
    assert_refused(
        bases(), adapter, r"cannot be understood \(modules_to_save names model\.\S+mlp and, inside it, model"
    )


@pytest.mark.parametrize("mark", ["modules_to_save", "original_module"])
def test_second_copy_that_differs_is_refused(mark, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), modules_to_save=["model.norm"])
    edit(adapter, lambda tensors: tensors.update({f"{MODEL}model.norm.{mark}.weight": torch.ones(64)}))
    assert_refused(bases(), adapter, rf"model\.norm\.{mark}\.weight differs from the base's")


def test_tensor_of_a_module_that_the_base_lacks_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda tensors: tensors.update({f"{MODEL}model.extra.weight": torch.ones(64)}))
    assert_refused(bases(), adapter, r"model\.extra\.weight is nothing that the base has")


@pytest.mark.parametrize(
    "name",
    [
        f"{Q}.lora_E",
        f"{Q}.lora_A.other.weight",
        f"{Q}.lora_A.weight.weight",
        f"{Q}.lora_magnitude_vector.default",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "prompt_embeddings",
    ],
)
def test_tensor_that_no_lora_has_is_refused(name, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda tensors: tensors.update({name: torch.ones(4, 64)}))
    assert_refused(bases(), adapter, rf"{name} is no tensor that a LoRA of PEFT has")


def test_matrix_in_two_spellings_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda tensors: tensors.update({f"{Q}.lora_A.default.weight": torch.ones(4, 64)}))
    assert_refused(bases(), adapter, r"lora_A(\.default)?\.weight is no tensor that a LoRA of PEFT has")


def test_embedding_matrices_on_a_linear_layer_are_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda tensors: tensors.update({f"{Q}.lora_embedding_A": torch.ones(4, 64)}))
    assert_refused(bases(), adapter, r"the adapter has, out of place, model\.\S+q_proj\.lora_embedding_A")


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([5, 5, 9], r"names a row of model\.embed_tokens twice"),
        (
            [5, 9, VOCABULARY],
            rf"names row {VOCABULARY} of model\.embed_tokens, but the base has {VOCABULARY}",
        ),
        ([5, 9, -1], r"names row -1 of model\.embed_tokens"),
        (
            [5, 9],
            r"trainable_tokens_delta has shape \(3, 64\), but model\.embed_tokens\.weight .* needs \(2, 64\)",
        ),
        (
            {"norm": [5]},
            "trainable_token_indices names norm, but export puts rows into embed_tokens and lm_head",
        ),
        (
            {"lm_head": [5, 9, 106]},
            r"trained rows of the head apart, though .*\(tied\)\. Name the rows of embed",
        ),
        ({"embed_tokens": [5, 9, 106], "lm_head": [5]}, "trained rows of the head apart"),
        (None, r"the adapter has, unlike its settings, the rows of model\.embed_tokens"),
        ([], r"the adapter has, unlike its settings, the rows of model\.embed_tokens"),
    ],
)
def test_rows_that_the_settings_contradict_are_refused(indices, message, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), trainable_token_indices=[5, 9, 106])
    edit_json(adapter / "adapter_config.json", trainable_token_indices=indices)
    assert_refused(bases(), adapter, message)


@pytest.mark.parametrize("indices", [{"lm_head": [5]}, {"embed_tokens": [5], "lm_head": [6]}])
def test_rows_of_a_tied_head_trained_apart_are_refused(indices, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), trainable_token_indices=indices)
    assert_refused(
        bases(), adapter, "trained rows of the head apart, though embedding and head share one weight"
    )


def test_rows_of_a_tied_head_with_other_values_are_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), trainable_token_indices=[5])
    edit(
        adapter,
        lambda tensors: tensors.update({ROWS.replace("model.embed_tokens", "lm_head"): torch.ones(1, 64)}),
    )
    assert_refused(bases(), adapter, "trained rows of the head apart")


def test_rows_that_are_missing_are_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases(), trainable_token_indices=[5])
    edit(adapter, lambda tensors: tensors.pop(ROWS))
    assert_refused(bases(), adapter, r"the adapter lacks the rows of model\.embed_tokens")


def test_tensor_trained_in_two_ways_is_refused(bases, adapters, tmp_path):
    base = bases(tied=False)
    adapter = adapters(tmp_path, base, modules_to_save=["lm_head"])
    edit_json(adapter / "adapter_config.json", trainable_token_indices={"lm_head": [5]})
    rows = {ROWS.replace("model.embed_tokens", "lm_head"): torch.ones(1, 64)}
    edit(adapter, lambda tensors: tensors.update(rows))
    assert_refused(base, adapter, r"says that lm_head\.weight was trained in two ways at once")


EVERYTHING = {
    "target_modules": ["q_proj", "embed_tokens"],
    "modules_to_save": ["model.norm"],
    "trainable_token_indices": {"lm_head": [5, 9]},
    "bias": "lora_only",
}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (f"{Q}.lora_A.weight", EVERYTHING),
        (f"{Q}.lora_B.weight", EVERYTHING),
        (f"{EMBEDDING}.lora_embedding_A", EVERYTHING),
        (f"{EMBEDDING}.lora_embedding_B", EVERYTHING),
        (f"{HEAD}.token_adapter.trainable_tokens_delta", EVERYTHING),
        (f"{MODEL}model.norm.weight", EVERYTHING),
        (f"{Q}.base_layer.bias", EVERYTHING),
        (f"{Q}.lora_magnitude_vector", {"use_dora": True}),
        (f"{Q}.lora_B.bias", {"lora_bias": True}),
    ],
)
def test_adapter_that_is_not_finite_is_refused(name, settings, value, bases, adapters, tmp_path):
    base = bases(tied=False, attention_bias=True)
    adapter = adapters(tmp_path, base, **settings)
    edit(adapter, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    assert_refused(base, adapter, rf"{name} holds NaN or infinity: the training diverged")


@pytest.mark.parametrize("number_format", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_adapter_in_another_number_format_is_refused(number_format, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"].to(number_format)}))
    assert_refused(bases(), adapter, r"lora_A\.weight is stored as \w+\. Save it as F32, BF16 or F16")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{Q}.lora_A.weight", (4, 63)),
        (f"{Q}.lora_B.weight", (64, 4, 1)),
        (f"{EMBEDDING}.lora_embedding_A", (4, VOCABULARY + 1)),
        (f"{EMBEDDING}.lora_embedding_B", (63, 4)),
        (f"{HEAD}.token_adapter.trainable_tokens_delta", (2, 63)),
        (f"{MODEL}model.norm.weight", (65,)),
        (f"{Q}.base_layer.bias", (1,)),
    ],
)
def test_tensor_of_another_shape_is_refused(name, shape, bases, adapters, tmp_path):
    base = bases(tied=False, attention_bias=True)
    adapter = adapters(tmp_path, base, **EVERYTHING)
    edit(adapter, lambda tensors: tensors.update({name: torch.ones(shape)}))
    assert_refused(base, adapter, rf"{name} has shape \({shape[0]}, ?.*, but .* of the base needs")


@pytest.mark.parametrize(
    ("name", "settings", "other"),
    [
        (f"{Q}.lora_magnitude_vector", {"use_dora": True}, ()),
        (f"{Q}.lora_B.bias", {"lora_bias": True}, ()),
        (
            f"{EMBEDDING}.weight",
            {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
            (f"{HEAD}.weight",),
        ),
    ],
)
def test_tensor_beside_the_matrices_of_another_shape_is_refused(
    name, settings, other, bases, adapters, tmp_path
):
    base = bases(attention_bias=True)
    adapter = adapters(tmp_path, base, **settings)
    edit(adapter, lambda tensors: tensors.update({each: torch.ones(63) for each in (name, *other)}))
    assert_refused(base, adapter, rf"{name} has shape \(63,\), but .* of the base needs")


@pytest.mark.parametrize("shape", [(), (5, 64)])
def test_matrix_of_another_rank_is_refused(shape, bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.ones(shape)}))
    assert_refused(bases(), adapter, r"says rank 4 for model\.\S+q_proj, but its lora_A has shape \(")


def test_adapter_without_tensors_is_refused(bases, adapters, tmp_path):
    adapter = adapters(tmp_path, bases())
    edit(adapter, lambda tensors: tensors.clear())
    assert_refused(bases(), adapter, "holds no tensors, so there is nothing to merge")
