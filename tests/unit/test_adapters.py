"""Adapters sit where they were asked for, or the run is refused."""

import json

import pytest
import transformers

from gemma_ft.config.schema import AdapterConfig, AdapterMethod
from gemma_ft.errors import ConfigError
from gemma_ft.modeling.adapters import attach_adapter

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def attach(*targets):
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES))
    adapted = attach_adapter(model, AdapterConfig(method=AdapterMethod.lora, rank=2, targets=targets))
    return {
        name.removeprefix("base_model.model.model.").rpartition(".lora_A")[0]
        for name, value in adapted.named_parameters()
        if value.requires_grad and "lora_A" in name
    }


def test_targets_match_by_name_or_by_place():
    assert len(attach("all-linear")) == 14
    assert attach("q_proj") == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}
    assert attach("layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj") == {
        "layers.1.mlp.up_proj",
        "layers.0.self_attn.k_proj",
    }


@pytest.mark.parametrize("right", [[], ["q_proj"], ["all-linear"]])
def test_each_target_that_matches_nothing_is_refused(right):
    with pytest.raises(ConfigError) as caught:
        attach(*right, "model.layers.99.self_attn.q_proj", "self_atn.k_proj")
    assert [problem.partition(" matches no layer")[0] for problem in caught.value.problems] == [
        "adapter.targets=[model.layers.99.self_attn.q_proj]",
        "adapter.targets=[self_atn.k_proj]",
    ]
    assert "which has 2 blocks, counted from 0. Choose among q_proj, k_proj," in caught.value.problems[0]


@pytest.fixture
def existing(tmp_path):
    """An adapter folder, and what happens where one goes on with it."""
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES))
    lora = AdapterConfig(method=AdapterMethod.lora, rank=2, targets=["q_proj", "up_proj"])
    attach_adapter(model, lora).save_pretrained(tmp_path)

    def go_on():
        base = transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES))
        return attach_adapter(base, AdapterConfig(method=AdapterMethod.lora, path=str(tmp_path)))

    return tmp_path, go_on


def test_an_adapter_goes_on_with_all_its_matrices(existing):
    _, go_on = existing
    assert sum("lora_" in name for name, value in go_on().named_parameters() if value.requires_grad) == 8


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"target_modules": ["q_proj"]}, "0 are missing, and 4 others are there"),
        ({"target_modules": ["q_proj", "up_proj", "k_proj"]}, "4 are missing, and 0 others are there"),
        ({"peft_type": "NOPE"}, r"it was trained on .* \(nothing known as 'NOPE'\)"),
    ],
)
def test_an_adapter_that_does_not_fit_its_own_settings_is_refused(existing, settings, line):
    folder, go_on = existing
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ConfigError, match=line):
        go_on()


def test_an_adapter_that_was_cut_is_refused(existing):
    folder, go_on = existing
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"^adapter\.path=\S+ does not fit .* \(.*header"):
        go_on()
