"""The merge's memory is a block's, not a checkpoint's nor a tensor's."""

import json
import math
import subprocess
import sys

import pytest

ROWS, COLUMNS, LAYERS = 16384, 2048, 4
MERGE = """
import sys, torch
from pathlib import Path
from gemma_ft.exporting.merging import row_changes
from gemma_ft.exporting.merging.merge import merge_checkpoint

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

torch.mm(torch.ones(16, 16), torch.ones(16, 16))
before = peak()
report = merge_checkpoint(*map(Path, sys.argv[1:]), shard_bytes=150_000_000)
print(report.total_bytes, report.changed, peak() - before, *{"transformers", "peft"} & sys.modules.keys())
"""


def write_zeros(path, dtype, item_bytes, shapes):
    """Write a sparse safetensors file, which takes neither time nor disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        first, end = end, end + math.prod(shape) * item_bytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_merge_of_268_megabytes_stays_within_24(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    modules = [f"model.layers.{i}.mlp.up_proj" for i in range(LAYERS)]
    write_zeros(
        base / "model.safetensors", "BF16", 2, {f"{name}.weight": (ROWS, COLUMNS) for name in modules}
    )
    (base / "config.json").write_text('{"model_type": "gemma"}')
    parts = {}
    for name in modules[1:]:
        parts[f"base_model.model.{name}.lora_A.weight"] = (8, COLUMNS)
        parts[f"base_model.model.{name}.lora_B.weight"] = (ROWS, 8)
    write_zeros(adapter / "adapter_model.safetensors", "F32", 4, parts)
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": modules[1:]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-c", MERGE, str(base), str(adapter), str(tmp_path / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    total, changed, grown = int(done[0]), int(done[1]), float(done[2])
    assert total == 2 * ROWS * COLUMNS * LAYERS > 268_000_000
    assert changed == 0
    assert grown < 24
    assert done[3:] == []
