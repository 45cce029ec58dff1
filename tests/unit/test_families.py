"""Which checkpoints are Gemmas that can be trained here, and which are refused by name."""

import pytest

from gemma_ft.errors import ModelError
from gemma_ft.families import family_of, family_of_hub_id


@pytest.mark.parametrize(
    ("model_type", "architecture", "name"),
    [
        ("gemma", "GemmaForCausalLM", "Gemma 1"),
        ("gemma2", "Gemma2ForCausalLM", "Gemma 2"),
        ("gemma3_text", "Gemma3ForCausalLM", "Gemma 3"),
    ],
)
def test_text_gemmas_are_known(model_type, architecture, name):
    assert family_of({"model_type": model_type, "architectures": [architecture]}, "x").name == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "is Gemma 3 with"),
        ({"model_type": "paligemma"}, r"model\.path=x is PaliGemma\. Use a causal-LM text model of Gemma 1"),
        ({"model_type": "llama"}, "a model of type 'llama'"),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"]}, "Gemma3TextModel, which has"),
        ({}, "a model of type 'unknown'"),
    ],
)
def test_everything_else_is_refused_by_name(config, message):
    with pytest.raises(ModelError, match=message):
        family_of(config, "x")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("google/gemma-7b-it", "Gemma 1"),
        ("google/gemma-1.1-2b-it", "Gemma 1"),
        ("google/codegemma-7b-it", "Gemma 1"),
        ("google/gemma-2-9b-it", "Gemma 2"),
        ("google/gemma-3-1b-it", "Gemma 3"),
        ("google/gemma-3-27b-it", None),
        ("someone/gemma-7b-it", None),
    ],
)
def test_googles_hub_ids_tell_their_family(path, name):
    family = family_of_hub_id(path)
    assert (family.name if family else None) == name
