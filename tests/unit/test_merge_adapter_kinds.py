"""Every kind of LoRA that PEFT writes, saved by PEFT and merged like PEFT in every element."""

import json

import pytest
import torch
from export_models import (
    build_adapter,
    build_base,
    differing,
    edit_json,
    edit_tensors,
    merge_by_peft,
    read_weights,
)

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.merge import merge_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED, UNTIED, BIASED = "tied", "untied", "biased"
BASES = {TIED: {}, UNTIED: {"tied": False}, BIASED: {"attention_bias": True}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(kind=TIED, **settings):
        key = (kind, *settings.items())
        if key not in made:
            made[key] = build_base(tmp_path_factory.mktemp("base"), **BASES[kind] | settings)
        return made[key]

    return base


def assert_merges_like_peft(base, adapter, merged):
    """Compare the merge with PEFT's and return the names of the tensors that differ from the base's."""
    report = merge_checkpoint(base, adapter, merged, shard_bytes=10**9)
    expected, found, before = merge_by_peft(base, adapter), read_weights(merged), read_weights(base)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert expected.keys() - found.keys() <= {HEAD}
    if HEAD not in found:
        assert torch.equal(expected[HEAD], found[EMBEDDING])
    assert differing(found, expected) == {}
    changed = differing(found, before).keys()
    assert report.changed == len(changed)
    return changed


def assert_refused(base, adapter, message):
    merged = adapter.parent / "merged"
    with pytest.raises(ExportError, match=message):
        merge_checkpoint(base, adapter, merged, shard_bytes=10**9)
    assert not merged.exists()


def linears(*names, layers=(0, 1)):
    rooms = {name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn" for name in names}
    return {f"model.layers.{i}.{rooms[name]}.{name}.weight" for i in layers for name in names}


Q = linears("q_proj")
QKVO_BIASES = {name.replace("weight", "bias") for name in linears("q_proj", "k_proj", "v_proj", "o_proj")}
NORMS = {f"model.layers.{i}.{name}_layernorm.weight" for i in (0, 1) for name in ("input", "post_attention")}

KINDS = {
    "biases of the layers with LoRA": (
        BIASED,
        {"bias": "lora_only"},
        Q | {n for n in QKVO_BIASES if "q_" in n},
    ),
    "all biases": (BIASED, {"bias": "all"}, Q | QKVO_BIASES),
    "all biases beside DoRA": (BIASED, {"bias": "all", "use_dora": True}, Q | QKVO_BIASES),
    "biases of a base without any": (TIED, {"bias": "all"}, Q),
    "biases of layers without any": (TIED, {"bias": "lora_only"}, Q),
    "LoRA with biases of its own": (BIASED, {"lora_bias": True}, Q | {n for n in QKVO_BIASES if "q_" in n}),
    "LoRA with biases and rslora": (
        BIASED,
        {"lora_bias": True, "use_rslora": True, "r": 3},
        Q | {n for n in QKVO_BIASES if "q_" in n},
    ),
    "final norm": (TIED, {"modules_to_save": ["model.norm"]}, Q | {"model.norm.weight"}),
    "every norm by the end of its name": (
        TIED,
        {"modules_to_save": ["norm"]},
        Q | NORMS | {"model.norm.weight"},
    ),
    "one linear layer": (
        TIED,
        {"modules_to_save": ["layers.0.mlp.up_proj"]},
        Q | linears("up_proj", layers=(0,)),
    ),
    "a linear layer that is a target too": (
        TIED,
        {"modules_to_save": ["q_proj"], "target_modules": ["q_proj", "k_proj"]},
        Q | linears("k_proj"),
    ),
    "a block that holds targets": (
        TIED,
        {"modules_to_save": ["mlp"], "target_modules": "all-linear"},
        linears("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "a layer with its bias beside all biases": (
        BIASED,
        {"modules_to_save": ["k_proj"], "bias": "all"},
        Q | linears("k_proj") | QKVO_BIASES,
    ),
    "a module that is not there": (TIED, {"modules_to_save": ["score"]}, Q),
    "tied embedding and head as one": (
        TIED,
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        Q | {EMBEDDING},
    ),
    "tied head and embedding as one": (
        TIED,
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        Q | {EMBEDDING},
    ),
    "embedding of an untied base": (UNTIED, {"modules_to_save": ["embed_tokens"]}, Q | {EMBEDDING}),
    "head of an untied base": (UNTIED, {"modules_to_save": ["lm_head"]}, Q | {HEAD}),
    "both of an untied base": (
        UNTIED,
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        Q | {EMBEDDING, HEAD},
    ),
    "rows of a tied base": (TIED, {"trainable_token_indices": [106, 5, 9]}, Q | {EMBEDDING}),
    "rows of an untied base": (UNTIED, {"trainable_token_indices": [106, 5, 9]}, Q | {EMBEDDING}),
    "rows by name": (TIED, {"trainable_token_indices": {"embed_tokens": [0, 127]}}, Q | {EMBEDDING}),
    "rows of both tied": (
        TIED,
        {"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [5, 9]}},
        Q | {EMBEDDING},
    ),
    "rows of both untied": (
        UNTIED,
        {"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [4, 8, 7]}},
        Q | {EMBEDDING, HEAD},
    ),
    "rows of an untied head": (UNTIED, {"trainable_token_indices": {"lm_head": [4]}}, Q | {HEAD}),
    "rows of the embedding and the whole head": (
        UNTIED,
        {"trainable_token_indices": [4], "modules_to_save": ["lm_head"]},
        Q | {EMBEDDING, HEAD},
    ),
    "LoRA on an untied embedding": (UNTIED, {"target_modules": ["q_proj", "embed_tokens"]}, Q | {EMBEDDING}),
    "rslora on an untied embedding": (
        UNTIED,
        {"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True, "r": 7},
        Q | {EMBEDDING},
    ),
    "LoRA on an untied head": (UNTIED, {"target_modules": ["q_proj", "lm_head"]}, Q | {HEAD}),
    "DoRA on an untied head": (
        UNTIED,
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        Q | {HEAD},
    ),
    "LoRA on embedding and head": (
        UNTIED,
        {"target_modules": r"embed_tokens|.*\.embed_tokens|lm_head"},
        {EMBEDDING, HEAD},
    ),
    "two layers of four": (
        TIED,
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layers"]},
        Q,
    ),
    "all but one": (
        TIED,
        {"target_modules": "all-linear", "exclude_modules": r".*(mlp|k_proj|v_proj|o_proj).*"},
        Q,
    ),
    "orthogonal start": (TIED, {"init_lora_weights": "orthogonal"}, Q),
    "gaussian start": (TIED, {"init_lora_weights": "gaussian"}, Q),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_adapter_merges_like_peft(kind, bases, tmp_path):
    base, settings, expected = KINDS[kind]
    adapter = build_adapter(bases(base), tmp_path / "adapter", **{"target_modules": ["q_proj"]} | settings)
    assert assert_merges_like_peft(bases(base), adapter, tmp_path / "merged") == expected


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("kind", ["tied embedding and head as one", "rows of a tied base", "all biases"])
def test_kind_of_a_later_generation_merges_like_peft(kind, model_type, bases, tmp_path):
    base, settings, expected = KINDS[kind]
    base = bases(base, model_type=model_type)
    adapter = build_adapter(base, tmp_path / "adapter", **{"target_modules": ["q_proj"]} | settings)
    assert assert_merges_like_peft(base, adapter, tmp_path / "merged") == expected


BESIDE_LORA = {
    "target_modules": ["q_proj", "embed_tokens"],
    "modules_to_save": ["norm"],
    "trainable_token_indices": {"lm_head": [5, 9]},
    "bias": "all",
    "r": 8,
}


@pytest.mark.parametrize(
    ("stored", "trained_in"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32")],
)
def test_all_kinds_at_once_merge_like_peft_in_every_number_format(stored, trained_in, bases, tmp_path):
    base = bases(UNTIED, attention_bias=True, dtype=stored)
    adapter = build_adapter(
        base, tmp_path / "adapter", dtype="bfloat16", base_dtype=getattr(torch, trained_in), **BESIDE_LORA
    )
    expected = Q | QKVO_BIASES | NORMS | {EMBEDDING, HEAD, "model.norm.weight"}
    assert assert_merges_like_peft(base, adapter, tmp_path / "merged") == expected


def test_layers_of_a_deep_model_are_matched_as_peft_matches_them(bases, tmp_path):
    base = bases(num_hidden_layers=4)
    adapter = build_adapter(
        base,
        tmp_path / "adapter",
        target_modules=["q_proj", "model.layers.0.mlp.up_proj"],
        layers_to_transform=[1, 3],
        exclude_modules=["layers.3.self_attn.q_proj"],
    )
    expected = linears("q_proj", layers=(1,)) | linears("up_proj", layers=(0,))
    assert assert_merges_like_peft(base, adapter, tmp_path / "merged") == expected


def test_list_of_every_layer_that_peft_shortens_is_matched_like_peft(bases, tmp_path):
    base = bases(num_hidden_layers=4)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapter = build_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    assert len(json.loads((adapter / "adapter_config.json").read_text())["target_modules"]) == len(names)
    expected = linears(*names, layers=range(4))
    assert assert_merges_like_peft(base, adapter, tmp_path / "merged") == expected


@pytest.mark.parametrize(
    ("settings", "old", "new"),
    [
        ({}, "lora_A.weight", "lora_A.default.weight"),
        ({}, "lora_B.weight", "lora_B.default.weight"),
        ({"use_dora": True}, "lora_magnitude_vector", "lora_magnitude_vector.weight"),
        ({"use_dora": True}, "lora_magnitude_vector", "lora_magnitude_vector.default.weight"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A", "lora_embedding_A.default"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_B", "lora_embedding_B.default"),
    ],
)
def test_tensor_with_the_name_of_the_adapter_in_it_merges_like_peft(settings, old, new, bases, tmp_path):
    base = bases(UNTIED)
    adapter = build_adapter(base, tmp_path / "adapter", **{"target_modules": ["q_proj"]} | settings)

    def rename(tensors):
        assert any(old in name for name in tensors)
        return {name.replace(old, new): tensor for name, tensor in tensors.items()}

    edit_tensors(adapter / "adapter_model.safetensors", rename)
    assert assert_merges_like_peft(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_start_that_peft_has_converted_to_a_plain_lora_merges_like_peft(start, rslora, bases, tmp_path):
    adapter = save_converted(bases(), tmp_path, init_lora_weights=start, use_rslora=rslora)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["init_lora_weights"], settings["r"]) == (True, 8)
    assert assert_merges_like_peft(bases(), adapter, tmp_path / "merged") == Q


def save_converted(base, folder, **settings):
    """Train an adapter from a start that changes the base, and let PEFT subtract that start again."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    settings = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
    model.save_pretrained(folder / "adapter", path_initial_model_for_weight_conversion=str(folder / "start"))
    return folder / "adapter"


@pytest.mark.parametrize("kind", [TIED, UNTIED])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"trainable_token_indices": [5]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_copies_of_the_embeddings_that_peft_saves_on_request_are_accepted(settings, kind, bases, tmp_path):
    adapter = build_adapter(
        bases(kind), tmp_path / "adapter", save_embedding_layers=True, target_modules=["q_proj"], **settings
    )
    expected = Q | {EMBEDDING} if settings else Q
    assert assert_merges_like_peft(bases(kind), adapter, tmp_path / "merged") == expected


def test_unset_keys_change_nothing(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter", target_modules=["q_proj"])
    edit_json(adapter / "adapter_config.json", exclude_modules=None, layers_to_transform=[])
    assert assert_merges_like_peft(bases(), adapter, tmp_path / "merged") == Q
