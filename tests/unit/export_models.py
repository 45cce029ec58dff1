"""Small seeded Gemmas on disk, adapters made by PEFT itself, and PEFT's own merge to compare with."""

import hashlib
import json
from pathlib import Path

import torch

from gemma_ft.families import FAMILIES

VOCABULARY = 128
FAMILY_BY_TYPE = {family.model_type: family for family in FAMILIES}


def build_base(
    folder, model_type="gemma", dtype="bfloat16", tied=True, shard_size="1GB", hidden=64, **settings
):
    """Save a seeded model with a tokenizer's files."""
    import transformers

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
    } | settings
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(model_type, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    """Write a word-level tokenizer with Gemma's special tokens at Gemma's ids, as transformers 5 saves it."""
    from tokenizers import AddedToken, Tokenizer, models

    words = {f"w{i}": i for i in range(VOCABULARY)}
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 106, "<end_of_turn>": 107}
    words = {word: i for word, i in words.items() if i not in special.values()} | special
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}, indent=1)
    (folder / "tokenizer_config.json").write_text(text)


def build_adapter(base, folder, dtype="float32", base_dtype="auto", save_embedding_layers="auto", **settings):
    """Save an adapter of random values, trained by nobody, with PEFT itself."""
    import peft
    import transformers

    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=base_dtype)
    defaults = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": "all-linear",
        "init_lora_weights": False,
        "task_type": "CAUSAL_LM",
    }
    model = peft.get_peft_model(model, peft.LoraConfig(**defaults | settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.rand(parameter.shape) + 0.5)
            elif "lora_" in name:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            if "lora_" in name or "trainable_tokens" in name:
                parameter.data = parameter.data.to(getattr(torch, dtype))
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return folder


def merge_by_peft(base, adapter):
    """Return the state of PEFT's default merge into the base in its own number format."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def read_weights(folder):
    """Return all tensors of a checkpoint folder by name."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def differing(one, other, names=None):
    """Return how many elements of each tensor differ, leaving out the equal ones."""
    counts = {name: int((one[name] != other[name]).sum()) for name in names or one}
    return {name: count for name, count in counts.items() if count}


def edit_json(path, **values):
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path, change):
    """Rewrite a safetensors file through a function of its tensors."""
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def hash_folder(folder):
    """Return the hash and the modification time of every file."""
    return {
        path.relative_to(folder): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
