"""Small seeded Gemmas that GGUF can hold: Gemma's kind of tokenizer, attention scaled as llama.cpp does."""

import json

import torch
from data_tokenizer import build_tokenizer

TYPES = ("gemma", "gemma2", "gemma3_text")
TRICKY = (
    "Hi the model,  three   spaces and the end ",
    " leading",
    "lines\n\n\nand\n more\r\n\ttabs\t\t",
    "emoji \U0001f600 \u2764\ufe0f \u4f60\u597d na\u00efve \u00e9",
    "digits 1234567890 and 3.14",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "half a token <end_of_tur and <0x41> and <unused5> and <unk>",
    "\u2581\u2581literal\u2581",
    "x" * 40 + " " * 40 + "\n" * 40,
)


def build_model(folder, model_type="gemma", dtype="bfloat16", tokenizer=None, **settings):
    """Save a checkpoint of two layers; its head_dim is the one that transformers' GGUF reader assumes."""
    import transformers

    tokenizer = tokenizer or build_tokenizer()
    shape = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 128,
        "sliding_window": 8,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    if model_type == "gemma":
        del shape["sliding_window"]
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(model_type, **shape | settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="200KB")
    tokenizer.save_pretrained(folder)
    (folder / "NOTICE").write_text("the terms\n")
    (folder / "README.md").write_text("---\nlicense: gemma\nbase_model: google/gemma-2b\n---\n\n# run\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 107]}))
    return folder
