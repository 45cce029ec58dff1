"""The merge's memory is a block's, not a checkpoint's nor a tensor's."""

import json
import math
import subprocess
import sys

import pytest

COLUMNS, LAYERS = 2048, 4
MERGE = """
import sys, torch
from pathlib import Path
from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.merging import pool, row_changes
from gemma_ft.exporting.merging.merge import plan_merge, write_merge
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.verify import verify_merge
from gemma_ft.modeling.libraries import quiet_bitsandbytes

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

pool.worker_count = lambda: 2
*folders, method = sys.argv[1:]
base, adapter, merged = map(Path, folders)
storage = None
torch.mm(torch.ones(16, 16), torch.ones(16, 16))
if method != "none":
    quiet_bitsandbytes()
    import bitsandbytes.functional
    storage = TrainedStorage(method=QuantizationMethod(method), double_quant=True, dtype="bfloat16")
before = peak()
plan = plan_merge(base, adapter, storage)
report = write_merge(plan, merged, shard_bytes=150_000_000)
exact = verify_merge(plan, merged)
assert (exact.unchanged, exact.differing) == (report.tensors, ())
heavy = {"transformers", "peft", "datasets"} & sys.modules.keys()
print(report.total_bytes, report.changed, peak() - before, *heavy)
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
@pytest.mark.parametrize(
    ("method", "rows", "limit"), [("none", 16384, 24), ("int8", 8192, 40), ("nf4", 8192, 60)]
)
def test_merge_grows_by_far_less_than_the_two_tensors_it_is_at_work_on(method, rows, limit, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    modules = [f"model.layers.{i}.mlp.up_proj" for i in range(LAYERS)]
    write_zeros(
        base / "model.safetensors", "BF16", 2, {f"{name}.weight": (rows, COLUMNS) for name in modules}
    )
    (base / "config.json").write_text('{"model_type": "gemma"}')
    parts = {}
    for name in modules[1:]:
        parts[f"base_model.model.{name}.lora_A.weight"] = (8, COLUMNS)
        parts[f"base_model.model.{name}.lora_B.weight"] = (rows, 8)
    write_zeros(adapter / "adapter_model.safetensors", "F32", 4, parts)
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": modules[1:]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-c", MERGE, str(base), str(adapter), str(tmp_path / "merged"), method]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    total, changed, grown = int(done[0]), int(done[1]), float(done[2])
    assert total == 2 * rows * COLUMNS * LAYERS
    assert changed == 0
    assert grown < limit < 2 * 2 * rows * COLUMNS / 2**20
    assert done[3:] == []
