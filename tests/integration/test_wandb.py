"""Weights & Biases, with a server on the loopback address that is as good or as bad as can be."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from program import losses, start, status
from wandb_stand_in import KEY, wandb_server

from gemma_ft.config.schema import RunConfig, TrackingConfig, TrackingMethod
from gemma_ft.errors import ConfigError, RunError
from gemma_ft.runs import RunFolder
from gemma_ft.training.trackers import tracker as trackers
from gemma_ft.training.trackers import weights_and_biases
from gemma_ft.training.tracking import tracked

CONFIG = RunConfig(name="x", tracking=TrackingConfig(method=TrackingMethod.wandb))
TOUCHED = ("API_KEY", "BASE_URL", "MODE", "CACHE_DIR", "DEBUG", "CORE_DEBUG", "ERROR_REPORTING", "SERVICE")


@pytest.fixture
def somebody(monkeypatch, tmp_path, caplog):
    """Return a function that points wandb at a server; its user has a key, and nothing at home."""
    for name in TOUCHED:
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "gemma_ft")
    (tmp_path / "run").mkdir()
    return lambda address: monkeypatch.setenv("WANDB_BASE_URL", address)


def track(steps=3):
    with tracked(CONFIG, RunFolder("run"), writes=True) as tracker:
        for step in range(steps):
            tracker.log({"step": step, "loss": 1.0 + step, "eval_loss": 2.0 + step})


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "gemma_ft"]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_server_that_answers_gets_every_metric_and_our_settings_only(somebody, tmp_path, caplog):
    with wandb_server() as server:
        somebody(server.address)
        track()
    sent = [(line["train/global_step"], line["train/loss"], line["eval/loss"]) for line in server.uploaded()]
    assert sent == [(0, 1, 2), (1, 2, 3), (2, 3, 4)]
    first = json.loads(server.bodies[server.asked.index("UpsertBucket")])["variables"]
    settings = json.loads(first["config"])
    assert settings["trainer"]["value"]["learning_rate"] == 2e-4
    assert (first["project"], first["displayName"], first["program"]) == ("gemma_ft", "x", "gemma_ft")
    assert (first["host"], first["repo"], first["commit"]) == (None, None, None)
    assert said(caplog) == []
    assert files(tmp_path)[0].startswith("run/wandb/")
    assert not (tmp_path / "home").exists()


def test_a_run_that_goes_on_is_the_same_run_there(somebody):
    with wandb_server() as server:
        somebody(server.address)
        track()
        track()
    asked = [
        body for name, body in zip(server.asked, server.bodies, strict=True) if name == "RunResumeStatus"
    ]
    names = [json.loads(body)["variables"]["name"] for body in asked]
    assert len(names) == 2
    assert len(set(names)) == 1


@pytest.mark.parametrize(
    "how", [{"status": 500}, {"hangs_at": "anything"}, {"hangs_at": "UpsertBucket"}], ids=str
)
def test_a_server_that_gives_no_answer_leaves_the_run_offline(how, somebody, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(weights_and_biases, "INIT_SECONDS", 0.5)
    with wandb_server(**how) as server:
        somebody(server.address)
        track()
        address = server.address.partition("//")[2]
    assert said(caplog) == [
        f"tracking=wandb: {address} does not answer, so it stays offline; "
        "later: wandb sync run/wandb/offline-*"
    ]
    assert len(list(tmp_path.glob("run/wandb/*run-*"))) == 1
    assert len(list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))) == 1


def test_a_server_that_is_not_there_leaves_the_run_offline(somebody, monkeypatch, caplog):
    monkeypatch.setattr(weights_and_biases, "INIT_SECONDS", 0.5)
    somebody("http://127.0.0.1:9")
    track()
    assert "127.0.0.1:9 does not answer, so it stays offline" in caplog.text


def test_what_a_hanging_server_did_not_take_can_be_synced_later(somebody, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(weights_and_biases, "FINISH_SECONDS", 0.5)
    with wandb_server(hangs_at="file_stream") as server:
        somebody(server.address)
        track(steps=500)
        assert list(server.uploaded()) == []
    (run,) = tmp_path.glob("run/wandb/run-*")
    assert said(caplog) == [
        "tracking=wandb: not everything was sent; later: wandb sync --include-online run/wandb/run-*"
    ]
    with wandb_server() as server:
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--include-online", f"run/wandb/{run.name}"],
            env={**os.environ, "WANDB_BASE_URL": server.address},
            capture_output=True,
            timeout=120,
            check=True,
        )
        assert len(list(server.uploaded())) == 500


def test_all_that_may_wait_for_the_network_stays_below_ten_seconds(tmp_path):
    waits = weights_and_biases._settings(tmp_path, "p", "n")
    assert waits["init_timeout"] + waits["finish_timeout"] <= 9
    assert waits["finish_timeout"] < trackers.CLOSE_SECONDS < 10
    assert waits["x_disable_viewer"]


@pytest.mark.parametrize(
    ("key", "status", "message"),
    [
        (
            KEY,
            401,
            r"^tracking=wandb is refused: 127\.0\.0\.1:\d+ does not accept the key in use\. "
            r"Renew it: run `wandb login` or set WANDB_API_KEY\.$",
        ),
        ("too-short", 200, r"does not accept the key in use"),
        (
            KEY,
            403,
            r"^tracking\.project=gemma_ft is refused by 127\.0\.0\.1:\d+ to this account\. "
            r"Name another one, or say whose it is with WANDB_ENTITY\.$",
        ),
    ],
)
def test_a_refusal_is_told_before_anything_is_loaded(key, status, message, somebody, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", key)
    with wandb_server(status=status) as server:
        somebody(server.address)
        with pytest.raises(ConfigError, match=message):
            track()
    assert list(tmp_path.glob("run/wandb/*run-*")) == []


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (
            "offline",
            "tracking=wandb: WANDB_MODE=offline, so it stays offline; later: wandb sync run/wandb/offline-*",
        ),
        ("disabled", None),
    ],
)
def test_the_mode_that_the_user_sets_is_kept(mode, told, somebody, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("WANDB_MODE", mode)
    with wandb_server() as server:
        somebody(server.address)
        track()
    assert server.asked == []
    assert said(caplog) == ([told] if told else [])
    assert len(list(tmp_path.glob("run/wandb/*run-*"))) == (told is not None)


def test_without_a_key_online_is_refused_instead_of_asked_for(somebody, monkeypatch):
    somebody("http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(
        ConfigError, match=r"^tracking=wandb has no key, but WANDB_MODE=online forbids to stay"
    ):
        track()


def test_a_run_goes_on_when_the_process_of_wandb_is_killed(somebody, caplog):
    import psutil

    with wandb_server() as server:
        somebody(server.address)
        with tracked(CONFIG, RunFolder("run"), writes=True) as tracker:
            for child in psutil.Process().children(recursive=True):
                if "wandb-core" in child.name():
                    child.kill()
                    child.wait()
            for step in range(3):
                tracker.log({"step": step, "loss": 1.0})
    assert len(said(caplog)) == 1
    assert said(caplog)[0].startswith("tracking=wandb stops: ")
    assert said(caplog)[0].endswith("The run goes on; metrics.jsonl has every number.")


@contextmanager
def proxy():
    """Note every connection; the one of wandb's own process too, which is no Python."""
    noted = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            noted.append(connection.recv(1000))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", noted
    finally:
        listener.close()


@pytest.mark.parametrize(("mode", "silent"), [("offline", True), ("online", False)])
def test_nobody_is_asked_when_it_is_offline(mode, silent, somebody, monkeypatch, tmp_path):
    monkeypatch.setattr(weights_and_biases, "INIT_SECONDS", 1.0)
    with proxy() as (address, noted):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("WANDB_MODE", mode)
        track()
    assert (noted == []) == silent
    assert len(list(tmp_path.glob("run/wandb/offline-run-*"))) == 1


def test_what_keeps_wandb_from_starting_is_told_in_one_line(somebody, monkeypatch):
    import wandb

    def broken(*_, **__):
        raise OSError(28, "No space\nleft")

    monkeypatch.setattr(wandb, "setup", broken)
    with pytest.raises(RunError, match=r"^tracking=wandb does not start: OSError .*No space left\. Mend"):
        track()


def test_a_whole_run_tells_wandb_what_metrics_jsonl_says(chats, tiny, tmp_path):
    words = ["name=x", "model=tiny", "dataset=local", f"dataset.path={chats}", "trainer=debug"]
    with wandb_server() as server:
        alone = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.address, "HOME": str(tmp_path / "home")}
        done = start(*words, "tracking=wandb", cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "x"
    assert status(run)["state"] == "finished"
    sent = list(server.uploaded())
    assert [line["train/loss"] for line in sent if "train/loss" in line] == pytest.approx(losses(run))
    assert [line["eval/loss"] for line in sent if "eval/loss" in line] == pytest.approx(
        losses(run, "eval_loss")
    )
    assert all("train/peak_memory_bytes" in line for line in sent if "train/loss" in line)
    assert not (tmp_path / "wandb").exists()
    assert not (tmp_path / "home").exists()


def test_wandb_without_a_key_stays_offline_in_the_run_folder(chats, tiny, tmp_path):
    words = ["name=x", "model=tiny", "dataset=local", f"dataset.path={chats}", "trainer=debug"]
    alone = {"WANDB_API_KEY": "", "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path / "home")}
    done = start(*words, "tracking=wandb", cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert "no key is set, so it stays offline; later: wandb sync outputs/x/wandb/offline-*" in done.stderr
    run = tmp_path / "outputs" / "x"
    assert status(run)["state"] == "finished"
    assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert not (tmp_path / "wandb").exists()
    assert not (tmp_path / "home").exists()
