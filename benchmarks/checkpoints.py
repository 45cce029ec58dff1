"""Synthetic Gemma checkpoints of full size, and LoRA adapters for them, without building a model."""

import json
import math
import random
from pathlib import Path

SHAPES = {
    "270m": {"layers": 18, "hidden": 640, "inner": 2048, "queries": 1024, "keys": 256},
    "0.6b": {"layers": 12, "hidden": 1024, "inner": 8192, "queries": 1024, "keys": 256},
    "2b": {"layers": 18, "hidden": 2048, "inner": 16384, "queries": 2048, "keys": 256},
    "7b": {"layers": 28, "hidden": 3072, "inner": 24576, "queries": 4096, "keys": 4096},
}
"""2b and 7b are Gemma 1's; 270m has Gemma 3's smallest proportions."""
WORDS, RANK, SHARD_BYTES = 256_000, 16, 5 * 10**9
_HEAD_WIDTH = 256


def linears(shape: str) -> dict[str, tuple[int, int]]:
    """List the linear layers of a decoder block with their shapes (outputs, inputs)."""
    size = SHAPES[shape]
    hidden, inner, queries, keys = size["hidden"], size["inner"], size["queries"], size["keys"]
    return {
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.v_proj": (keys, hidden),
    }


def base_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """List every tensor of the base, in the order of a checkpoint."""
    hidden = SHAPES[shape]["hidden"]
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, hidden)}
    for layer in range(SHAPES[shape]["layers"]):
        block = f"model.layers.{layer}"
        tensors |= {f"{block}.{name}.weight": size for name, size in linears(shape).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = (hidden,)
    return tensors | {"model.norm.weight": (hidden,)}


def base_bytes(shape: str) -> int:
    """Return the bytes of all tensors of the base, in bf16."""
    return 2 * sum(map(math.prod, base_shapes(shape).values()))


def adapter_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """List the matrices of an adapter on every linear layer."""
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(SHAPES[shape]["layers"]):
        for name, (outputs, inputs) in linears(shape).items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = (RANK, inputs)
            tensors[f"{module}.lora_B.weight"] = (outputs, RANK)
    return tensors


def model_config(shape: str) -> dict[str, object]:
    """Return what transformers builds the model by."""
    size = SHAPES[shape]
    return {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "vocab_size": WORDS,
        "hidden_size": size["hidden"],
        "intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["queries"] // _HEAD_WIDTH,
        "num_key_value_heads": size["keys"] // _HEAD_WIDTH,
        "head_dim": _HEAD_WIDTH,
        "hidden_activation": "gelu_pytorch_tanh",
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }


def write_normal(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Write a safetensors file of normal numbers, each tensor from another place of one pool of them."""
    import torch

    item = {"BF16": 2, "F32": 4}[dtype]
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    pool = pool.bfloat16() if dtype == "BF16" else pool
    raw = pool.view(torch.uint8).numpy().tobytes()
    header, end = {}, 0
    for name, shape in shapes.items():
        size = item * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    places = random.Random(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            first, last = entry["data_offsets"]
            while first < last:
                start = places.randrange(len(raw) // item) * item
                first += file.write(raw[start : start + last - first])


def make(shape: str, folder: Path) -> tuple[Path, Path]:
    """Write a base and an adapter."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    files: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, size in base_shapes(shape).items():
        count = 2 * math.prod(size)
        if used + count > SHARD_BYTES:
            files.append({})
            used = 0
        files[-1][name] = size
        used += count
    places = {}
    for i, part in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        write_normal(base / file, part, "BF16")
        places |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (base / "config.json").write_text(json.dumps(model_config(shape)))
    generation = {"eos_token_id": [1, 107], "bos_token_id": 2, "pad_token_id": 0}
    (base / "generation_config.json").write_text(json.dumps(generation))
    write_normal(adapter / "adapter_model.safetensors", adapter_shapes(shape), "F32")
    names = sorted({name.rpartition(".")[2] for name in linears(shape)})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": names}))
    return base, adapter
