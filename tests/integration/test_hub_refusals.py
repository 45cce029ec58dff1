"""A recipe whose model cannot be had ends within seconds, in one line, and leaves nothing behind."""

import time

import pytest
from hub_stand_in import hub_that_refuses, silent_hub
from program import start


def ask(address, cwd):
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(cwd / "home"), "HF_TOKEN": ""}
    began = time.monotonic()
    done = start("recipe=ultrachat_qlora", cwd=cwd, env=online)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "recipe=quickstart needs neither" in done.stderr
    assert not (cwd / "outputs").exists()
    return done.stderr, time.monotonic() - began


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {"X_Error_Code": "GatedRepo"}, "hf auth login"),
        (403, {"X_Error_Code": "GatedRepo"}, "https://huggingface.co/google/gemma-7b-it"),
        (404, {"X_Error_Code": "RepoNotFound"}, "model.path=google/gemma-7b-it"),
    ],
)
def test_no_token_no_licence_and_no_such_repository_are_told_apart(tmp_path, status, headers, said):
    with hub_that_refuses(status, **headers) as address:
        line, _ = ask(address, tmp_path)
    assert said in line


def test_a_silent_hub_is_given_up(tmp_path):
    with silent_hub() as address:
        line, seconds = ask(address, tmp_path)
    assert "does not answer" in line
    assert seconds < 30  # the libraries' own patience is minutes; how many seconds is no verdict


def test_offline_mode_is_named(tmp_path):
    done = start("recipe=ultrachat_qlora", cwd=tmp_path, env={"HF_HOME": str(tmp_path / "home")})
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE=1 forbids asking the hub" in done.stderr
