"""The program as a user starts it, and what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def start(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m gemma_ft ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gemma_ft", *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def losses(run: Path, key: str = "loss") -> list[float]:
    """Read what a run logged, in order."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record[key] for record in map(json.loads, lines) if key in record]


def status(run: Path) -> dict[str, Any]:
    """Read status.json."""
    content: dict[str, Any] = json.loads((run / "status.json").read_text(encoding="utf-8"))
    return content


def tensors(folder: Path) -> dict[str, Any]:
    """Read every tensor of a folder's safetensors."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_tensors(one: Path, other: Path) -> None:
    """Compare two folders bit for bit."""
    import torch

    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert torch.equal(a[name], b[name]), name


def write_chats(path: Path) -> Path:
    """Write a small file of conversations, as a user would bring it."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus {number}?"},
                {"role": "assistant", "content": f"It is {2 * number}."},
            ]
        }
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
