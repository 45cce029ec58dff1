"""A certificate's memory is a block of a layer's, not a model's."""

import json
import subprocess
import sys

import pytest
from test_merge_memory import write_zeros

WIDTH, INNER, WORDS = 1024, 8192, 65536
CERTIFY = """
import sys, torch
from pathlib import Path
from gemma_ft.modeling.libraries import quiet_bitsandbytes
quiet_bitsandbytes()
import bitsandbytes, peft, transformers.models.gemma.modeling_gemma
from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.certificate import comparison
from gemma_ft.exporting.certificate.certify import certify
from gemma_ft.exporting.certificate.rows import CertificateRow, CertificateRows
from gemma_ft.exporting.merging.merge import plan_merge, write_merge
from gemma_ft.exporting.merging.storage import TrainedStorage

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

base, adapter, out = map(Path, sys.argv[1:])
comparison.NEW_TOKENS = 2
held = TrainedStorage(method=QuantizationMethod.nf4, double_quant=True, dtype="bfloat16")
plan = plan_merge(base, adapter, held)
write_merge(plan, out, shard_bytes=10**9)
row = CertificateRow(tuple(range(2, 34)), (-100,) * 16 + tuple(range(18, 34)))
rows = CertificateRows("held_out", (row,))
before = peak()
content = certify(plan, out, rows, trained_storage=held).content
print(peak() - before, content["difference"]["kl_mean"], *{"datasets", "trl", "pandas"} & sys.modules.keys())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_certificate_of_a_model_of_470_megabytes_stays_within_200(tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    for folder in (base, adapter, out):
        folder.mkdir()
    linears = {
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
        **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    }
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    parts = {}
    for layer in range(2):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{block}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        for name, (outputs, inputs) in linears.items():
            parts[f"base_model.model.{block}.{name}.lora_A.weight"] = (8, inputs)
            parts[f"base_model.model.{block}.{name}.lora_B.weight"] = (outputs, 8)
    write_zeros(base / "model.safetensors", "BF16", 2, shapes)
    write_zeros(adapter / "adapter_model.safetensors", "F32", 4, parts)
    settings = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": [n.split(".")[1] for n in linears],
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    config = {
        "model_type": "gemma",
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "eos_token_id": 1,
    }
    for folder in (base, out):
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 107], "pad_token_id": 0}')
    command = [sys.executable, "-c", CERTIFY, str(base), str(adapter), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(done[0]) < 200
    assert float(done[1]) == 0.0
    assert done[2:] == []
