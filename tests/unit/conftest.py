"""A launcher's variables, as its processes find them."""

from collections.abc import Callable

import pytest

_HEARD_OF = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what torchrun sets, over two GPUs in sight; nothing is set before it is called."""
    for name in _HEARD_OF:
        monkeypatch.setenv(name, "")  # so that it is taken away in the end, whoever sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")

    def start(world_size: int, rank: int = 0, **more: str) -> None:
        variables = {"WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500, "TORCHELASTIC_RUN_ID": "x"}
        for name, value in {**variables, **more}.items():
            monkeypatch.setenv(name, str(value))

    return start
