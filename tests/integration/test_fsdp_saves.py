"""Saves of a sharded run that hold nothing, as FSDP wrote them with wrapped adapters: the run ends there."""

import pytest
from fsdp_runs import METHODS, TORCHRUN, Bench
from launching import HERE, begin, end
from program import status

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys
import fsdp_on_cpus
from gemma_ft.training import sharded_state
from gemma_ft.training.sharded_trainer import ShardedTrainer

gather = ShardedTrainer.trained_weights

def gather_nothing(self):
    return {} if gather(self) else None

if os.environ["EMPTY"] == "checkpoint":
    sharded_state._trained_weights = lambda model: {}
else:
    ShardedTrainer.trained_weights = gather_nothing
sys.exit(fsdp_on_cpus.main())
"""


@pytest.mark.parametrize(("empty", "place"), [("checkpoint", "checkpoint-2"), ("adapter", "adapter")])
def test_a_save_without_a_tensor_ends_the_run(tmp_path, chats, tiny, empty, place):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = Bench(tmp_path, chats).words("x", *METHODS["lora"], "parallel=fsdp")
    launched = begin(*TORCHRUN, "2", "program.py", *words, cwd=tmp_path, EMPTY=empty, PYTHONPATH=str(HERE))
    done = end(launched)
    assert done.returncode == 1
    assert f"{place} was written without any tensor. Please report this" in done.stderr
    run = tmp_path / "outputs" / "x"
    assert status(run)["state"] == "failed"
    assert not (run / "adapter").exists()
    if empty == "checkpoint":
        assert not list((run / "checkpoints").glob("step-*"))
