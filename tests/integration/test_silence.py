"""Nothing leaves the machine: no connection is tried that the user did not ask for."""

import os
import subprocess
import sys

import pytest

WATCH = """
import os, socket

def note(*arguments):
    with open(os.environ["WATCHED"], "a") as log:
        log.write(repr(arguments[:2]) + "\\n")
    raise OSError("no network here")

socket.getaddrinfo = note
socket.socket.connect = lambda self, address: note(address)
"""
SILENCERS = (
    "CI",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
)
TRAIN = """
import gemma_ft
words = ["recipe=quickstart", "trainer.max_steps=2", "dataset.max_rows=50", "trainer.packing=false"]
run = gemma_ft.train(gemma_ft.compose(*words))
gemma_ft.generate(run, "hi", max_new_tokens=2)
gemma_ft.export(run)
"""
ASK = "import huggingface_hub as hub; hub.HfApi().whoami(token='x')"


def watched(code, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    environment = {name: value for name, value in os.environ.items() if name not in SILENCERS}
    environment |= {"PYTHONPATH": str(tmp_path), "WATCHED": str(tmp_path / "log")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    log = tmp_path / "log"
    return done, log.read_text() if log.exists() else ""


def test_a_whole_run_from_python_tries_no_connection(tiny, tmp_path):
    done, tried = watched(TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert tried == ""


@pytest.mark.parametrize("code", [ASK], ids=["whoami"])
def test_the_watch_sees_a_connection(code, tmp_path):
    _, tried = watched(code, tmp_path)
    assert "huggingface.co" in tried
