"""The loss heads on a GPU: ours is true in every number format, and the one that is chosen is too."""

import json

import pytest
from on_gpu import start

SCRIPT = """
import json, sys
import torch
from gemma_ft.config.trainer import LossHeadMethod, TrainerConfig
from gemma_ft.training.loss.choice import Load, choose_head
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.loss.measuring import Bench

dtype, trains = getattr(torch, sys.argv[1]), sys.argv[2] == "trains"
device = torch.device("cuda")
source = torch.Generator(device).manual_seed(0)
weight = torch.randn(50_000, 512, device=device, generator=source) * 0.05
found = {}
for cap in (None, 30.0):
    bench = Bench(weight.to(dtype), trains=trains, dtype=dtype, soft_cap=cap)
    load = Load(words=50_000, tokens=2048, dtype=dtype, device=device, soft_cap=cap)
    choice = choose_head(TrainerConfig(), load, lambda: bench)
    found[str(cap)] = {
        "own": bench.find_fault(LossHead(LossHeadMethod.chunked, 16)),
        "chosen": choice.head.method.value,
        "fault": bench.find_fault(choice.head),
        "compared": sorted({entry["head"] for entry in choice.measured}),
    }
print(json.dumps(found))
"""


@pytest.mark.parametrize("trains", ["trains", "frozen"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ours_is_true_and_so_is_the_one_that_is_chosen_by_measurement(tmp_path, dtype, trains):
    done = start("-c", SCRIPT, dtype, trains, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for cap, heads in (("None", ["chunked", "torch", "trl"]), ("30.0", ["chunked", "trl"])):
        assert found[cap]["own"] == ""
        assert found[cap]["fault"] == ""
        assert found[cap]["compared"] == heads
