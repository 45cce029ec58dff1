"""Two nodes on one machine: the scripts of launch files, whole, meet over the loopback interface."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from program import losses, start, status

from gemma_ft.config.compose import compose
from gemma_ft.launching import kubernetes, skypilot, slurm
from gemma_ft.launching.job import Job, build_job

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="scripts for bash")

SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@"; code=$?
wait $! && exit $code
"""
SCONTROL = '#!/bin/bash\n[ "$1" = show ] && printf "localhost\\nlocalhost\\n" || echo "$@" >> requeued\n'


def words(chats: Path, name: str, steps: int = 4) -> list[str]:
    return [
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        f"name={name}",
        "trainer.sample_prompt=it's $HOME $(id)",
        "trainer.max_length=64",
        f"trainer.max_steps={steps}",
        "trainer.global_batch_size=4",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-2",
        "quantization=none",
        "export=none",
    ]


def two_nodes(given: list[str]) -> Job:
    return build_job(compose(*given), given, nodes=2, gpus=1, stop_seconds=120)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_batch_script_trains_on_two_nodes_what_one_process_trains(chats, tiny, tmp_path):
    given = words(chats, "two")
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = slurm.render(
        two_nodes(given), file="x", python=sys.executable, partition=None, account=None, time=None
    )
    environment = {"SLURM_JOB_ID": str(free_port() - 15000), "SLURM_JOB_NODELIST": "n[1-2]"}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = script.replace("15000 + SLURM_JOB_ID % 15000", "15000 + SLURM_JOB_ID")  # one that is free here
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "two"
    assert status(run)["state"] == "finished"
    assert "2 process" in done.stderr
    assert done.stderr.count("step 1/4") == 1
    one = start(*words(chats, "one"), cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert losses(run) == pytest.approx(losses(tmp_path / "outputs" / "one"), abs=1e-4)
    assert not (tmp_path / "requeued").exists()


def script_and_places(engine: str, job: Job, folder: Path) -> tuple[str, list[dict[str, str]]]:
    """Return a node's script, with this machine's names for the cluster's, and the place of each node."""
    port = f"port={free_port()}"
    if engine == "kubernetes":
        text = kubernetes.render(job, file="x", image="i", claim="c", python=sys.executable)
        script = next(yaml.safe_load_all(text))["data"]["train.sh"]
        script = script.replace(f"first={job.plain_name}-node-0-0.{job.plain_name}", "first=localhost")
        places = [{"JOB_COMPLETION_INDEX": str(rank), "HOSTNAME": "localhost"} for rank in (0, 1)]
        return script.replace("port=29500", port), places
    text = skypilot.render(
        job, file="x", gpu_type="H100", image="i", volume="v", python=sys.executable, spot=True
    )
    script = yaml.safe_load(text)["run"].replace("cd /shared", f"cd {folder}")
    common = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_TASK_ID": "sky-1"}
    places = [{"SKYPILOT_NODE_RANK": str(rank), **common} for rank in (0, 1)]
    return script.replace("port=29500", port), places


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["kubernetes", "skypilot"])
def test_a_node_that_is_told_to_stop_stops_both_after_a_checkpoint_and_both_go_on(
    engine, chats, tiny, tmp_path
):
    job = two_nodes(words(chats, "two", steps=30))
    run = tmp_path / "outputs" / "two"

    def begin() -> list[subprocess.Popen[str]]:
        script, places = script_and_places(engine, job, tmp_path)
        return [
            subprocess.Popen(
                ["bash", "-c", script],
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1", "RESTART": "1", **place},
                stdout=subprocess.DEVNULL,
                stderr=(tmp_path / f"node-{rank}.log").open("a"),
                text=True,
            )
            for rank, place in enumerate(places)
        ]

    def logs() -> str:
        return "".join(file.read_text() for file in sorted(tmp_path.glob("node-*.log")))

    nodes = begin()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not ((run / "metrics.jsonl").is_file() and losses(run)):
        time.sleep(0.1)
    nodes[1].send_signal(signal.SIGTERM)  # as of a node that is drained, and no other
    assert [node.wait(timeout=300) for node in nodes] == [143, 143], logs()
    assert status(run)["state"] == "interrupted"
    assert list((run / "checkpoints").glob("step-*"))
    assert [node.wait(timeout=300) for node in begin()] == [0, 0], logs()
    assert status(run)["state"] == "finished"
    assert "going on from" in logs()
    assert len(losses(run)) == 30
