"""Launches of `many_runs`, and what their runs must have in common."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import losses, tensors

PROGRAM = Path(__file__).with_name("many_runs.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

WORDS = [
    "dataset=local",
    "dataset.eval_fraction=0.18",  # seven rows, which two processes cannot share out evenly
    "trainer.max_length=64",
    "trainer.max_steps=4",
    "trainer.global_batch_size=4",
    "trainer.logging_steps=1",
    "trainer.eval_steps=2",
    "trainer.save_steps=2",
    "trainer.save_total_limit=null",
    "export=none",
]

METHODS = {
    "full": ["quantization=none", "adapter=none", "trainer.learning_rate=2e-4"],
    "lora": ["quantization=none", "adapter=lora", "trainer.learning_rate=1e-3"],
    "nf4": ["quantization=nf4", "adapter=lora", "trainer.learning_rate=1e-3"],
}
"""What is trained; rates at which Adam does not make much of a difference in the last bit."""


class Bench:
    """A folder in which lines are launched, in one process or in several."""

    def __init__(self, folder: Path, chats: Path) -> None:
        """Use a folder, and a file of conversations as the data."""
        self.folder = folder
        self.chats = chats

    def words(self, name: str, *more: str, model: str = "model=tiny") -> list[str]:
        """Write the line of a run; of several values for a key the last one stands."""
        words = [f"name={name}", model, *WORDS, f"dataset.path={self.chats}", *more]
        return list({word.partition("=")[0]: word for word in words}.values())

    def launch(
        self, processes: int, *lines: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Give lines to as many processes through torchrun, or to one without a launcher (0); all succeed."""
        file = self.folder / "runs.json"
        file.write_text(json.dumps(lines), encoding="utf-8")
        launcher = [*TORCHRUN, str(processes)] if processes else [sys.executable]
        done = self.start([*launcher, str(PROGRAM), str(file)], environment)
        assert done.returncode == 0, done.stderr[-6000:]
        return done

    def start(
        self, words: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder, on one thread a process."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )

    def run(self, name: str) -> Path:
        """Return a run folder."""
        return self.folder / "outputs" / name

    def trained(self, name: str) -> dict[str, Any]:
        """Read what a run has trained."""
        run = self.run(name)
        return tensors(next(run / part for part in ("adapter", "model") if (run / part).is_dir()))

    def facts(self, name: str, processes: int) -> list[dict[str, Any]]:
        """Read what each process told of a run."""
        folder = self.folder / "facts" / name
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]

    def assert_equal(self, one: str, other: str, *, loss: float = 1e-5, weights: float = 2e-5) -> None:
        """Compare what two runs logged and trained.

        Args:
            one: The run that is held to be right.
            other: The run that is compared.
            loss: How far losses may be apart; 5 decimals where both compute in fp32.
            weights: The same for what was trained. A step moves a weight by the learning rate, 1e-3 or 2e-4.
        """
        a, b = self.run(one), self.run(other)
        for key in ("loss", "eval_loss"):
            assert losses(a, key), key
            assert losses(b, key) == pytest.approx(losses(a, key), abs=loss, rel=0), key
        assert losses(b, "learning_rate") == losses(a, "learning_rate")
        # torch's norm of a large tensor, summed up by one thread, is itself wrong by as much
        assert losses(b, "grad_norm") == pytest.approx(losses(a, "grad_norm"), rel=max(loss, 1e-4))
        right, found = self.trained(one), self.trained(other)
        assert found.keys() == right.keys()
        for name, value in right.items():
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
            assert (found[name] - value).abs().max() <= weights, name
        assert losses(b)[-1] != pytest.approx(losses(b)[0], abs=10 * loss)  # it learns


def assert_bit_identical(bench: Bench, one: str, other: str) -> None:
    """Compare every logged number and every trained bit of two runs."""
    import torch

    for key in ("loss", "eval_loss", "grad_norm", "learning_rate", "num_tokens", "entropy"):
        assert losses(bench.run(other), key) == losses(bench.run(one), key), key
    right, found = bench.trained(one), bench.trained(other)
    assert found.keys() == right.keys()
    for name, value in right.items():
        assert torch.equal(found[name], value), name
