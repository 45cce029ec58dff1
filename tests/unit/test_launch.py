"""Whether the program starts processes of its own."""

import pytest

from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.training import launch


@pytest.mark.parametrize(
    ("method", "gpus", "launched", "processes"),
    [
        (ParallelMethod.ddp, 4, False, 4),
        (ParallelMethod.ddp, 4, True, 0),  # by torchrun, accelerate or a cluster
        (ParallelMethod.ddp, 1, False, 0),
        (ParallelMethod.auto, 4, False, 0),
        (ParallelMethod.single, 4, False, 0),
    ],
)
def test_processes_are_started_where_ddp_is_asked_for_and_no_launcher_has_begun(
    monkeypatch, method, gpus, launched, processes
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(launch, "count_gpus", lambda: gpus)
    config = RunConfig()
    config.parallel.method = method
    assert launch.processes_to_launch(config) == processes
