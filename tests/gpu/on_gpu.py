"""How these tests start processes that see the GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

METHODS = {
    "full": ["quantization=none", "adapter=none", "trainer.learning_rate=5e-5"],
    "lora": ["quantization=none", "trainer.learning_rate=1e-3"],
    "nf4": ["quantization=nf4", "trainer.learning_rate=1e-3"],
    "int8": ["quantization=int8", "trainer.learning_rate=1e-3"],
}


def environment(**more: str) -> dict[str, str]:
    """Return an environment that shows the GPUs which the tests' own process hides from itself."""
    env = {name: value for name, value in os.environ.items() if (name, value) != ("CUDA_VISIBLE_DEVICES", "")}
    return env | more


def start(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words, with the GPUs in sight unless `env` says otherwise."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run_all(lines: list[list[str]], cwd: Path, **env: str) -> None:
    """Give command lines to the program, all in one process."""
    file = cwd / f"{lines[0][0].partition('=')[2]}.json"
    file.write_text(json.dumps(lines), encoding="utf-8")
    done = start(str(HERE / "runs_on_gpu.py"), str(file), cwd=cwd, **env)
    assert done.returncode == 0, done.stderr


def words_for(name: str, chats: Path, *more: str) -> list[str]:
    """Return the words of a short run of the bundled model."""
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        "dataset.eval_fraction=0",
        "export=none",
        "trainer.max_length=64",
        "trainer.max_steps=6",
        "trainer.global_batch_size=4",
        "trainer.logging_steps=1",
        *more,
    ]


def measure(part: str, folder: Path) -> dict[str, Any]:
    """Measure a part of the benchmark on the bundled model; return its figures."""
    words = ["--folder", str(folder), "--shape", "tiny", "--device", "cuda"]
    out = folder / f"{part}.json"
    done = start(
        str(ROOT / "benchmarks" / "gpu.py"),
        *("--child", part, "--out", str(out), *words),
        cwd=folder,
        PYTHONPATH=str(ROOT),
    )
    outcome: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    assert outcome.get("status") == "measured", (outcome, done.stderr[-3000:])
    figures: dict[str, Any] = outcome["figures"]
    return figures
