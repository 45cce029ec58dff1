"""Convert a Gemma 1 of any size into a checkpoint of litgpt: run by litgpt's Python, MODEL CHECKPOINT.

Its own converter knows only the sizes that were published.
"""

import json
import shutil
import sys
from pathlib import Path


def convert(model: Path, checkpoint: Path) -> None:
    """Write lit_model.pth and model_config.yaml beside copies of the tokenizer's files."""
    import torch
    from litgpt import Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import save_config
    from safetensors.torch import load_file

    sizes = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config = Config.from_name(
        "Gemma-2b",
        block_size=sizes["max_position_embeddings"],
        padded_vocab_size=sizes["vocab_size"],
        vocab_size=sizes["vocab_size"],
        n_embd=sizes["hidden_size"],
        n_layer=sizes["num_hidden_layers"],
        n_head=sizes["num_attention_heads"],
        n_query_groups=sizes["num_key_value_heads"],
        head_size=sizes["head_dim"],
        intermediate_size=sizes["intermediate_size"],
        norm_eps=sizes["rms_norm_eps"],
    )
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(model / "model.safetensors"))
    weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    checkpoint.mkdir(exist_ok=True)
    for file in [*model.glob("tokenizer*"), model / "generation_config.json", model / "config.json"]:
        if file.exists():
            shutil.copy(file, checkpoint)
    torch.save(weights, checkpoint / "lit_model.pth")
    save_config(config, checkpoint)


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:3]))
