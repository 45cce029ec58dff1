"""Several processes, through a real launcher, on CPUs."""

import os
import subprocess
import sys

import pytest
from program import losses, start, status

WORDS = [
    "model=tiny",
    "dataset=local",
    "trainer.max_length=64",
    "trainer.max_steps=4",
    "trainer.global_batch_size=4",
    "dataset.eval_fraction=0.18",  # seven rows, which two processes cannot share out evenly
    "trainer.logging_steps=1",
    "trainer.learning_rate=1e-2",
]


def test_two_processes_train_what_one_trains(chats, tiny, tmp_path):
    words = [*WORDS, f"dataset.path={chats}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    two = subprocess.run(
        [*launcher, "gemma_ft", "name=two", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("step 1/4") == 1  # one process speaks
    one = start("name=one", *words, cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    outputs = tmp_path / "outputs"
    assert losses(outputs / "two") == pytest.approx(losses(outputs / "one"), abs=1e-4)
    assert losses(outputs / "two", "eval_loss") == pytest.approx(
        losses(outputs / "one", "eval_loss"), abs=1e-4
    )
    assert status(outputs / "two")["state"] == "finished"
