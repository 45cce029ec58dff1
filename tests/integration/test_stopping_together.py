"""Several processes of which one is asked to stop, or finds what the others do not see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import assert_same_tensors, losses, status

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

PROGRAM = """
import os, signal, sys
from gemma_ft.cli import main
from gemma_ft.training.trainer import RunTrainer

rank, _, step = os.environ.get("STOP", "-1:0").partition(":")
finish = RunTrainer._maybe_log_save_evaluate

def finish_step(self, *args, **kwargs):
    if os.environ["RANK"] == rank and self.state.global_step == int(step):
        os.kill(os.getpid(), signal.SIGTERM)
    return finish(self, *args, **kwargs)

RunTrainer._maybe_log_save_evaluate = finish_step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def two(tmp_path, chats, tiny):
    """Train in two processes through torchrun; returns the run folder and what was said."""
    (tmp_path / "program.py").write_text(PROGRAM)
    words = ["model=tiny", "dataset=local", f"dataset.path={chats}", "dataset.eval_fraction=0.18"]
    words += ["trainer.max_length=64", "trainer.max_steps=6", "trainer.global_batch_size=4"]
    words += ["trainer.logging_steps=4", "trainer.save_steps=2", "trainer.learning_rate=1e-2", "export=none"]
    words += ["adapter.dropout=0.1", "trainer.eval_steps=3", "trainer.save_total_limit=null"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def run(name: str, stop: str = "-1:0") -> tuple[Path, subprocess.CompletedProcess[str]]:
        done = subprocess.run(
            [*launcher, "program.py", f"name={name}", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "STOP": stop},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return tmp_path / "outputs" / name, done

    return run


def test_all_processes_stop_where_one_is_asked_to_and_go_on_alike(two):
    whole, done = two("whole")
    assert done.returncode == 0, done.stderr

    cut, done = two("cut", stop="1:3")  # before an evaluation, and between two logs
    assert done.returncode != 0
    assert "interrupted: another process was asked to stop" in done.stderr
    assert status(cut)["state"] == "interrupted"
    steps = cut / "checkpoints"
    assert sorted(path.name for path in steps.glob("step-*")) == ["step-000002", "step-000003"]
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {
        path.name for path in (steps / "step-000003").iterdir()
    }

    (steps / "step-000003" / "rng_state_1.pth").write_bytes(b"")  # all leave it out
    cut, done = two("cut", stop="0:5")
    assert done.returncode != 0
    assert done.stderr.count("is torn and is left out: rng_state_1.pth has 0 of") == 1
    assert "going on from outputs/cut/checkpoints/step-000002" in done.stderr
    assert "interrupted: SIGTERM" in done.stderr

    cut, done = two("cut")
    assert done.returncode == 0, done.stderr
    for key in ("loss", "eval_loss", "learning_rate", "grad_norm", "num_tokens", "entropy"):
        assert losses(cut, key) == losses(whole, key), key
    assert_same_tensors(cut / "adapter", whole / "adapter")
