"""Record the trajectory of `recipe=quickstart` and what it was measured on."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = ["-m", "gemma_ft", "recipe=quickstart", "export=none"]


def main() -> None:
    """Train in a fresh folder and write quickstart.json beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, *COMMAND], cwd=folder, env=environment, check=True)
        run = Path(folder) / "outputs" / "quickstart"
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        packages = json.loads((run / "environment.json").read_text())["packages"]
    golden = {
        "command": " ".join(["python", *COMMAND]),
        "machine": f"CPU, {platform.machine()}, Python {platform.python_version()}",
        "packages": packages,
        "tolerance": 0.03,
        "loss": [record["loss"] for record in records if "loss" in record],
        "eval_loss": [record["eval_loss"] for record in records if "eval_loss" in record],
    }
    Path(__file__).with_name("quickstart.json").write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
