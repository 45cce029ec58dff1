"""Each generation from a local folder, as a downloaded checkpoint lies there."""

import json
from pathlib import Path

import pytest
from program import losses, tensors

SIZES = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def write_checkpoint(folder: Path, family: str, tiny: Path) -> Path:
    """Write random weights in bf16, in several shards, beside a tokenizer without a chat template."""
    import shutil

    import torch
    import transformers

    config_class, model_class, extra = {
        "Gemma 1": ("GemmaConfig", "GemmaForCausalLM", {}),
        "Gemma 2": ("Gemma2Config", "Gemma2ForCausalLM", {"sliding_window": 32, "query_pre_attn_scalar": 32}),
        "Gemma 3": (
            "Gemma3TextConfig",
            "Gemma3ForCausalLM",
            {"sliding_window": 32, "query_pre_attn_scalar": 32},
        ),
    }[family]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**SIZES, **extra)
    model = getattr(transformers, model_class)(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    if family == "Gemma 3":
        move_turns(folder / "tokenizer.json")
    return folder


def move_turns(file: Path) -> None:
    """Give the turn tokens the ids that they have in Gemma 3: one less, and 107 is unused."""
    content = json.loads(file.read_text())
    moved = {"<start_of_turn>": 105, "<end_of_turn>": 106, "<unused100>": 107}
    assert content["model"]["vocab"]["<unused100>"] == 105
    content["model"]["vocab"] |= moved
    for token in content["added_tokens"]:
        token["id"] = moved.get(token["content"], token["id"])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("family", ["Gemma 1", "Gemma 2", "Gemma 3"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_family_trains_and_merges_from_a_local_folder(
    train, chats, tiny, tmp_path, family, quantization
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = write_checkpoint(tmp_path / "base", family, tiny)
    run = train(
        "name=x",
        f"model.path={base}",
        "dataset=local",
        f"dataset.path={chats}",
        f"quantization={quantization}",
        "trainer.max_steps=6",
        "trainer.max_length=64",
        "trainer.packing=true",
        "trainer.global_batch_size=4",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-2",
    )
    assert losses(run)[-1] < losses(run)[0]
    assert json.loads((run / "data.json").read_text())["model"]["family"] == family
    before, after = tensors(base), tensors(run / "merged")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 7 * SIZES["num_hidden_layers"]
    _, info = AutoModelForCausalLM.from_pretrained(run / "merged", output_loading_info=True)
    assert not any(info.values())
    chat = [{"role": "user", "content": "hi"}]
    text = AutoTokenizer.from_pretrained(run / "merged").apply_chat_template(chat, tokenize=False)
    assert text == "<bos><start_of_turn>user\nhi<end_of_turn>\n"


def test_a_checkpoint_that_is_no_text_gemma_is_refused_by_name(train, chats, tmp_path, capsys):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    train("name=x", "model.path=llama", "dataset=local", f"dataset.path={chats}", code=2)
    assert "is a model of type 'llama'. Use a causal-LM text model of Gemma 1" in capsys.readouterr().err


def test_a_sequence_longer_than_the_model_is_refused_with_the_bound(train, chats, tiny, capsys):
    words = ("dataset=local", f"dataset.path={chats}", "trainer.max_length=8193")
    train("name=x", f"model.path={tiny}", *words, code=2)
    assert "above the 8192 positions" in capsys.readouterr().err
