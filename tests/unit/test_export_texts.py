"""What stands in the small files of an export."""

import json
from dataclasses import replace

import pytest
import yaml
from export_models import FAMILY_BY_TYPE, write_tokenizer

from gemma_ft.exporting.folder.card import Origin, build_card
from gemma_ft.exporting.folder.model_config import export_config, export_generation_config
from gemma_ft.exporting.folder.notice import build_adapter_notice, build_notice
from gemma_ft.exporting.folder.tokenizer_files import special_token_ids
from gemma_ft.families import GEMMA_NOTICE

GEMMA1, GEMMA2, GEMMA3 = (FAMILY_BY_TYPE[name] for name in ("gemma", "gemma2", "gemma3_text"))
TOKENS = {"eos": 1, "end_of_turn": 107, "bos": 2, "pad": 0}

ORIGIN = Origin(
    name="quotes",
    base_name="google/gemma-2b-it",
    base_revision="abc123",
    data={
        "source": "hub",
        "path": "Abirate/english_quotes",
        "split": "train",
        "rows_train": 90,
        "rows_held_out": 10,
    },
    quantization="nf4",
    adapter="lora",
    held_out_loss=(3.5, 2.25),
    day="2026-01-31",
    settings={"adapter.rank": "8", "adapter.targets": "q_proj|k_proj"},
    merged_onto="the base as it was trained on (nf4), dequantised",
    certificate=("largest logit difference 0.03", "greedy answers equal: 8 of 8"),
)


def front_matter(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0])


def test_config_of_today_gets_the_old_spellings():
    today = {
        "model_type": "gemma",
        "dtype": "float32",
        "use_cache": False,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
        "quantization_config": {"load_in_4bit": True},
        "_name_or_path": "/home/me/gemma",
    }
    assert export_config(today, GEMMA1, "bfloat16") == {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
    }


def test_released_config_gets_the_new_spellings():
    released = {
        "hidden_act": "gelu",
        "hidden_activation": None,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    }
    made = export_config(released, GEMMA1, "bfloat16")
    assert made["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert made["hidden_activation"] == made["hidden_act"] == "gelu_pytorch_tanh"
    assert made["dtype"] == "bfloat16"


def test_other_activation_is_kept():
    assert export_config({"hidden_activation": "silu"}, GEMMA2, "float32")["hidden_activation"] == "silu"


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 8.0}},
    ],
)
def test_scaled_positions_are_spelled_both_ways(spelling):
    made = export_config(spelling, GEMMA2, "float32")
    assert made["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert made["rope_parameters"] == {"rope_theta": 1e4, "rope_type": "linear", "factor": 8.0}
    assert made["rope_theta"] == 1e4


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
        },
    ],
)
def test_both_kinds_of_attention_of_gemma_3_are_spelled_both_ways(spelling):
    made = export_config(spelling, GEMMA3, "bfloat16")
    assert (made["rope_theta"], made["rope_local_base_freq"]) == (1e6, 1e4)
    assert made["rope_parameters"] == {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert made["sliding_window_pattern"] == 6


@pytest.mark.parametrize(
    ("layers", "period"),
    [
        (["sliding_attention", "full_attention"] * 2, 2),
        (["sliding_attention"] * 4, 6),
        (["full_attention", "full_attention", "sliding_attention"], None),
    ],
)
def test_period_of_global_attention_is_read_from_the_layers(layers, period):
    assert export_config({"layer_types": layers}, GEMMA3, "float32").get("sliding_window_pattern") == period


def test_both_stop_tokens_are_listed():
    made = export_generation_config({"_from_model_config": True, "top_k": 64, "eos_token_id": 1}, {}, TOKENS)
    assert made == {"top_k": 64, "eos_token_id": [1, 107], "bos_token_id": 2, "pad_token_id": 0}


def test_further_stop_tokens_of_the_base_are_kept():
    made = export_generation_config({"eos_token_id": [1, 106, 50]}, {}, TOKENS | {"end_of_turn": 106})
    assert made["eos_token_id"] == [1, 106, 50]


def test_the_end_of_a_text_stops_too_where_it_is_not_the_end_of_a_turn(tmp_path):
    write_tokenizer(tmp_path)
    settings = {"eos_token": "<end_of_turn>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = special_token_ids(tmp_path)
    assert tokens == TOKENS | {"eos": 107, "end_of_text": 1}
    assert export_generation_config({}, {}, tokens)["eos_token_id"] == [1, 107]


def test_config_helps_out_where_the_tokenizer_is_silent():
    config = {"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
    assert export_generation_config({}, config, {}) == {
        "eos_token_id": [1],
        "bos_token_id": 2,
        "pad_token_id": 0,
    }


def test_special_tokens_are_found_in_the_large_file(tmp_path):
    write_tokenizer(tmp_path)
    assert special_token_ids(tmp_path) == TOKENS


def test_special_tokens_are_found_in_the_small_files_alone(tmp_path):
    added = {"1": {"content": "</s>"}, "107": {"content": "<end_of_turn>"}, "0": {"content": "<pad>"}}
    settings = {"eos_token": {"content": "</s>"}, "bos_token": "<bos>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text('{"<bos>": 2}')
    assert special_token_ids(tmp_path) == TOKENS


def test_card_has_the_front_matter_of_the_hub():
    assert front_matter(build_card(GEMMA1, ORIGIN)) == {
        "license": "gemma",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "google/gemma-2b-it",
        "base_model_relation": "finetune",
        "datasets": ["Abirate/english_quotes"],
        "tags": ["gemma_ft", "sft", "lora"],
    }


@pytest.mark.parametrize("name", ["123/1e3", "no/yes", "a-b/null", "x/2026-01-31"])
def test_front_matter_keeps_names_that_yaml_could_take_for_something_else(name):
    front = front_matter(build_card(GEMMA1, replace(ORIGIN, base_name=name)))
    assert front["base_model"] == name


def test_card_tells_how_the_model_was_made():
    card = build_card(GEMMA1, ORIGIN)
    assert "# quotes" in card
    assert "Gemma 1 fine-tuned from google/gemma-2b-it (revision abc123)." in card
    assert (
        "low-rank adapters (lora) on a base quantised to nf4; then merged into the base as it was "
        "trained on (nf4), dequantised" in card
    )
    assert "Abirate/english_quotes, split train, 90 rows trained on, 10 held out" in card
    assert "Held-out loss: 3.5000 before, 2.2500 after training" in card
    assert "### Recipe\n\n| key | value |\n| --- | --- |\n| `adapter.rank` | 8 |\n" in card
    assert "| `adapter.targets` | q_proj\\|k_proj |\n" in card


def test_card_says_what_the_certificate_says_or_that_there_is_none():
    assert "- largest logit difference 0.03\n- greedy answers equal: 8 of 8\n" in build_card(GEMMA1, ORIGIN)
    card = build_card(GEMMA1, replace(ORIGIN, certificate=()))
    assert "## Certificate\n\nNot certified: it was not compared with the model that was trained.\n" in card


def test_full_fine_tune_is_not_said_to_be_merged():
    origin = replace(ORIGIN, adapter="none", quantization="none", merged_onto="")
    assert "- Trained: every weight (full fine-tuning)\n" in build_card(GEMMA1, origin)
    assert front_matter(build_card(GEMMA1, origin))["tags"] == ["gemma_ft", "sft"]
    notice = build_notice(GEMMA1, origin, template_added=False)
    assert "run quotes, every weight (full fine-tuning), exported on 2026-01-31." in notice


def test_local_paths_stay_out_of_card_and_notice(tmp_path):
    data = {"source": "local", "path": str(tmp_path / "rows.jsonl"), "rows_train": 3}
    origin = replace(
        ORIGIN,
        base_name=str(tmp_path),
        base_revision=None,
        data=data,
        held_out_loss=None,
        settings={"adapter.path": str(tmp_path)},
    )
    card, notice = build_card(GEMMA2, origin), build_notice(GEMMA2, origin, template_added=False)
    assert str(tmp_path) not in card + notice
    assert "| `adapter.path` | <local path> |" in card
    assert "<https://ai.google.dev/gemma/terms>" in card
    assert front_matter(card).keys() == {"license", "library_name", "pipeline_tag", "tags"}
    assert "fine-tuned from a local checkpoint" in card
    assert "Data: local files, 3 rows trained on" in card
    assert "Held-out loss" not in card


def test_local_folder_that_looks_like_a_hub_id_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "gemma").mkdir(parents=True)
    assert replace(ORIGIN, base_name="models/gemma").base_id is None
    assert replace(ORIGIN, base_name="models/other").base_id == "models/other"


def test_the_bundled_model_is_under_nobodys_terms_but_ours():
    origin = replace(ORIGIN, base_name="bundled:tiny", base_revision=None)
    card = build_card(GEMMA1, origin)
    texts = [
        card,
        build_notice(GEMMA1, origin, template_added=False),
        build_adapter_notice(GEMMA1, origin, template_added=False),
    ]
    assert front_matter(card).keys().isdisjoint({"license", "base_model", "base_model_relation"})
    for text in texts:
        assert GEMMA_NOTICE not in text
        assert "ai.google.dev" not in text
        assert "random weights that gemma_ft makes from a seed on the machine itself" in text
    assert "fine-tuning bundled:tiny:" in texts[1]


def test_notice_carries_terms_and_modifications():
    notice = build_notice(GEMMA3, ORIGIN, template_added=False).splitlines()
    assert notice[0] == GEMMA_NOTICE
    assert notice[0] == (
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    )
    text = " ".join(notice)
    assert "https://ai.google.dev/gemma/terms" in text
    assert "modified by fine-tuning google/gemma-2b-it (revision abc123): run quotes" in text
    assert "merged into the base as it was trained on (nf4), dequantised, exported on 2026-01-31" in text
    assert "The tokenizer's files are unchanged copies." in text


def test_notice_of_an_adapter_carries_the_same_terms():
    notice = build_adapter_notice(GEMMA3, ORIGIN, template_added=True, tokenizer_rewritten=True)
    assert notice.splitlines()[0] == GEMMA_NOTICE
    text = " ".join(notice.splitlines())
    assert "This adapter was trained on google/gemma-2b-it (revision abc123), which it changes" in text
    assert "low-rank adapters (lora) on a base quantised to nf4, exported on 2026-01-31" in text
    assert "merged" not in text
    assert "the turn tokens were listed as special tokens" in text
    assert "A chat template (chat_template.jinja) was added; the tokenizer had none." in text
