"""Planted secrets: no run, finished or failed, may leave one in a file or on the screen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import hub_that_refuses

PLANTED = {
    "HF_TOKEN": "hf_PlantedHubTokenPlantedHubToken42",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MY_SERVICE_PASSWORD": 'pl@nted"pass/word\\1',
    "AWS_SECRET_ACCESS_KEY": "plantedAwsKey/plantedAwsKey+plantedAwsKey",
}
IN_A_FILE = "hf_PlantedInTheTokenFilePlanted4242"
LOUD = {
    "HF_DEBUG": "1",
    "TRANSFORMERS_VERBOSITY": "debug",
    "DATASETS_VERBOSITY": "debug",
    "WANDB_DEBUG": "true",
    "WANDB_CORE_DEBUG": "true",
    "WANDB__LOG_LEVEL": "10",
}


@pytest.fixture
def planted(tmp_path):
    """Return the environment of a user with secrets, whose home and caches lie in tmp_path."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(IN_A_FILE)
    (tmp_path / "home").mkdir()
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN_PATH", "NETRC")
    clean = {name: value for name, value in os.environ.items() if name not in offline}
    return clean | PLANTED | LOUD | {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path / "home")}


def start(*words, cwd, env):
    program = [sys.executable, "-m", "gemma_ft", *words]
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, timeout=600, check=False)


def forms(secret):
    """Yield the ways in which a secret may be written."""
    import base64
    import json
    from urllib.parse import quote

    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield json.dumps(secret)[1:-1].encode()
    yield repr(secret)[1:-1].encode()
    yield base64.b64encode(f"api:{secret}".encode())


def leaks(folder, *texts):
    """List where a planted secret stands: files below a folder, and what was printed."""
    places = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places |= {f"printed {number}": text for number, text in enumerate(texts)}
    places.pop(Path("hf/token"), None)  # where the user keeps it
    return [
        f"{secret} in {place}"
        for place, content in places.items()
        for secret in (*PLANTED.values(), IN_A_FILE)
        if any(form in content for form in forms(secret))
    ]


def quick(tmp_path, chats):
    return ["model=tiny", "dataset=local", f"dataset.path={chats}", "trainer=debug", "trainer.max_steps=2"]


def test_finished_runs_with_every_tracker_keep_no_secret(planted, tmp_path, chats, tiny):
    words = quick(tmp_path, chats)
    env = planted | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    done = start("-m", *words, "tracking=none,wandb,tensorboard,trackio", "name=x", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr.decode()
    runs = sorted((tmp_path / "outputs").glob("x*"))
    assert len(runs) == 4
    assert sum((run / "wandb").is_dir() for run in runs) == 1
    assert sum((run / "tensorboard").is_dir() for run in runs) == 1
    assert sum((run / "trackio").is_dir() for run in runs) == 1
    assert leaks(tmp_path, done.stdout, done.stderr) == []


def test_a_hub_that_tells_the_token_back_is_not_repeated(planted, tmp_path):
    echo = {"X_Error_Message": f"No tea for Bearer {PLANTED['HF_TOKEN']}", "X_Error_Code": "Odd"}
    with hub_that_refuses(418, **echo) as address:
        done = start(
            "name=x",
            "model=tiny",
            "dataset.path=some/thing",
            "dataset=ultrachat_200k",
            cwd=tmp_path,
            env=planted | {"HF_ENDPOINT": address},
        )
    assert done.returncode != 0
    assert b"[secret HF_TOKEN]" in done.stderr
    assert leaks(tmp_path, done.stdout, done.stderr) == []


@pytest.mark.parametrize(
    "word",
    [
        "dataset.path=https://user:{HF_TOKEN}@host/x.jsonl",
        "+trainer.extra.hub_token={HF_TOKEN}",
        "model.path=someone/{HF_TOKEN}",
        "tracking.project={WANDB_API_KEY}",
        "export.push_to_hub=me/{HF_TOKEN}",
        "nme={HF_TOKEN}",
    ],
)
def test_a_secret_on_the_command_line_is_refused_before_anything_is_written(word, planted, tmp_path):
    done = start("name=x", "model=tiny", word.format(**PLANTED), cwd=tmp_path, env=planted)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert leaks(tmp_path, done.stdout, done.stderr) == []
    assert not (tmp_path / "outputs").exists()


def test_an_unexpected_error_is_told_without_its_secret(planted, tmp_path, chats, tiny):
    break_it = (
        "import os, sys; import gemma_ft.training.data as data; from gemma_ft.cli import main\n"
        "def broken(*arguments, **options): raise ValueError('asked with ' + os.environ['HF_TOKEN'])\n"
        "import gemma_ft.training.run as run; run.prepare_rows = broken\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    program = [sys.executable, "-c", break_it, "name=x", *quick(tmp_path, chats), "tracking=tensorboard"]
    done = subprocess.run(program, cwd=tmp_path, env=planted, capture_output=True, timeout=600, check=False)
    assert done.returncode == 1
    assert b"ValueError: asked with [secret HF_TOKEN]" in done.stderr
    assert b"[secret HF_TOKEN]" in (tmp_path / "outputs/x/status.json").read_bytes()
    assert leaks(tmp_path, done.stdout, done.stderr) == []


def test_a_planted_secret_would_be_found(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.bin").write_bytes(b"\0\1" + PLANTED["AWS_SECRET_ACCESS_KEY"].encode() + b"\2")
    assert leaks(tmp_path) == [f"{PLANTED['AWS_SECRET_ACCESS_KEY']} in deep/file.bin"]
    assert leaks(tmp_path / "deep", IN_A_FILE.encode())[1:] == [f"{IN_A_FILE} in printed 0"]
