"""Adapters sit where they were asked for, or the run is refused."""

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
