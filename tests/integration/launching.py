"""Launchers as a user starts them, on CPUs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu")
WORDS = (
    "model=tiny",
    "quantization=none",
    "dataset=local",
    "trainer.max_length=64",
    "trainer.global_batch_size=4",
    "dataset.eval_fraction=0.18",  # seven rows, which two processes cannot share out evenly
    "trainer.logging_steps=1",
    "trainer.learning_rate=1e-2",
    "export=none",
)
"""A small run, but for its rows, steps and name."""

LaunchedRun = subprocess.CompletedProcess[str]


def begin(*words: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start a launcher or program."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **env}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        variables.pop(name, None)
    return subprocess.Popen(
        words, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> LaunchedRun:
    """Wait for its end."""
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def torchrun(processes: int, *words: str) -> tuple[str, ...]:
    """Write torchrun's line for a program or module on one machine."""
    return (*TORCHRUN, "--standalone", "--nproc-per-node", str(processes), *words)


def accelerate(processes: int, *words: str) -> tuple[str, ...]:
    """Write accelerate's line for one machine."""
    port = ("--main_process_port", "0")
    return (*ACCELERATE, "--num_processes", str(processes), "--num_machines", "1", *port, *words)


def two_nodes_of_torchrun(processes: int, *words: str) -> list[tuple[str, ...]]:
    """Write the lines of two machines that meet at the first one, each with so many processes."""
    place = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    each = (*TORCHRUN, *place, "--rdzv-id", "x", "--nproc-per-node", str(processes), *words)
    return [each, each]


def two_nodes_of_accelerate(processes: int, *words: str) -> list[tuple[str, ...]]:
    """Write the lines of two machines whose ranks are fixed, each with so many processes."""
    place = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    every = (*ACCELERATE, "--num_processes", str(2 * processes), "--num_machines", "2", *place)
    return [(*every, "--machine_rank", str(rank), *words) for rank in (0, 1)]


TWO_NODES: dict[str, Callable[..., list[tuple[str, ...]]]] = {
    "torchrun": two_nodes_of_torchrun,
    "accelerate": two_nodes_of_accelerate,
}


def free_port() -> int:
    """Find a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def rows_by_step(watched: Path) -> dict[int, list[str]]:
    """Read which rows the processes trained on together, by step."""
    found: dict[int, list[str]] = {}
    for file in watched.glob("steps-*.jsonl"):
        for step, row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            found.setdefault(step, []).append(row)
    return {step: sorted(rows) for step, rows in sorted(found.items())}
