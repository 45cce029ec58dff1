"""Tests that need a GPU: marked `gpu`, skipped where torch sees none.

The process that tests sees no GPU, as in all other tests; each of these starts processes that do.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from on_gpu import HERE, environment
from program import write_chats


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def gpus() -> int:
    """Count the GPUs that torch sees."""
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="session", autouse=True)
def _needs_a_gpu(gpus: int) -> None:
    if not gpus:
        pytest.skip("torch sees no GPU here")


@pytest.fixture(scope="session")
def two_gpus(gpus: int) -> None:
    """Skip where there is one GPU."""
    if gpus < 2:
        pytest.skip(f"needs 2 GPUs, and {gpus} is in sight")


@pytest.fixture(scope="session")
def place(_needs_a_gpu: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, for all runs that are compared with each other."""
    folder = tmp_path_factory.mktemp("gpu")
    write_chats(folder / "chats.jsonl")
    return folder
