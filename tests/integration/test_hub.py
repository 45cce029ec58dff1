import re

import pytest
from hub_stand_in import COMMIT, ask_hub, hub_that_refuses, hub_with, silent_hub

from gemma_ft import hub

FILE = """
from gemma_ft.hub import fetch_file
print(fetch_file("google/gemma-7b-it", "config.json", key="model.path", revision=None))
"""
SNAPSHOT = """
from gemma_ft.hub import fetch_snapshot
patterns = ["*.json", "*.safetensors"]
print(fetch_snapshot("google/gemma-7b-it", key="model.path", revision=None, patterns=patterns))
"""
SECRET = "hf_aSecretThatMustNotBeShown"
MODEL = {"config.json": "{}", "model.safetensors": "x", "notes.txt": "not asked for"}

REFUSALS = {
    "gated-without-login": (
        {"status": 401, "X_Error_Code": "GatedRepo"},
        {},
        r"asks for a login and an accepted licence. Accept it at https://huggingface.co/google/gemma-7b-it, "
        r"then run `hf auth login` or set HF_TOKEN\.",
    ),
    "gated-with-dead-token": (
        {"status": 401, "X_Error_Code": "GatedRepo"},
        {"HF_TOKEN": SECRET},
        r"the hub does not accept the token in use. Renew it: run `hf auth login` or set HF_TOKEN\.",
    ),
    "mistyped-token": (
        {"status": 401, "X_Error_Message": "Invalid credentials in Authorization header"},
        {"HF_TOKEN": SECRET},
        r"the hub does not accept the token in use. Renew it",
    ),
    "licence-not-accepted": (
        {"status": 403, "X_Error_Code": "GatedRepo"},
        {"HF_TOKEN": SECRET},
        r"this account has not accepted its licence. Accept it at https://huggingface.co/google/gemma-7b-it ",
    ),
    "token-without-the-right": (
        {
            "status": 403,
            "X_Error_Code": "GatedRepo",
            "X_Error_Message": "Please enable gated repositories in your fine-grained token settings",
        },
        {"HF_TOKEN": SECRET},
        r"the token may not read gated repositories. Use a read token",
    ),
    "forbidden": (
        {"status": 403},
        {"HF_TOKEN": SECRET},
        r"is refused to this account. Accept its licence or ask for access at https://huggingface.co/google/gemma",
    ),
    "absent-or-private": (
        {"status": 401, "X_Error_Code": "RepoNotFound"},
        {},
        r"is not on the hub, or asks for a login. Check the spelling and "
        r"https://huggingface.co/google/gemma-7b-it, then run `hf auth login` or set HF_TOKEN\.",
    ),
    "absent": (
        {"status": 404, "X_Error_Code": "RepoNotFound"},
        {},
        r"is not on the hub, or private. Check the spelling; for a private model, run `hf auth login`",
    ),
    "no-such-revision": (
        {"status": 404, "X_Error_Code": "RevisionNotFound"},
        {},
        r"has no such revision on the hub. Check model.revision\.",
    ),
    "no-such-file": (
        {"status": 404, "X_Error_Code": "EntryNotFound"},
        {},
        r"has no config.json on the hub. Choose another model\.",
    ),
    "broken-hub": (
        {"status": 503},
        {},
        r"is not in this machine's cache, and the hub answers with error 503. Try again later\.",
    ),
    "offline-mode": (
        {"status": 503},
        {"HF_HUB_OFFLINE": "1"},
        r"is not in this machine's cache, and HF_HUB_OFFLINE=1 forbids asking the hub. Unset it, or give",
    ),
}


def assert_one_line(out, expected):
    assert re.match(rf"HubError model\.path=google/gemma-7b-it .*{expected}", out), out
    assert out.endswith("recipe=quickstart needs neither network nor account.")
    assert "\n" not in out
    assert SECRET not in out


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_is_one_line_that_says_what_to_do(case, tmp_path):
    answer, environment, expected = REFUSALS[case]
    with hub_that_refuses(**answer) as address:
        out, err, _ = ask_hub(FILE, address, tmp_path, **environment)
    assert_one_line(out, expected)
    assert err == ""


def test_a_snapshot_is_refused_in_the_same_words(tmp_path):
    with hub_that_refuses(403, X_Error_Code="GatedRepo") as address:
        out, _, _ = ask_hub(SNAPSHOT, address, tmp_path)
    assert_one_line(out, "this account has not accepted its licence")


def test_a_hub_that_says_nothing_is_given_up_within_seconds(tmp_path):
    with silent_hub() as address:
        out, _, seconds = ask_hub(FILE, address, tmp_path)
    assert_one_line(out, rf"the hub \({address}\) does not answer. Check the network\.")
    assert seconds < 10


def test_a_name_that_is_slow_to_resolve_is_given_up_too(monkeypatch):
    import threading

    over = threading.Event()
    monkeypatch.setattr(hub, "DEADLINE_SECONDS", 0.1)
    monkeypatch.setattr(hub, "_put_question", lambda *_: over.wait(30))
    answer = hub.ask("google/gemma-7b-it", revision=None, repo_type="model", name="config.json")
    over.set()
    assert isinstance(answer.failure, TimeoutError)


def test_a_machine_without_network_is_told_so_at_once(tmp_path):
    out, _, seconds = ask_hub(FILE, "http://127.0.0.1:9", tmp_path)
    assert_one_line(out, r"the hub \(http://127.0.0.1:9\) does not answer")
    assert seconds < 5


def test_files_are_fetched_and_then_found_in_the_cache(tmp_path):
    with hub_with(MODEL) as address:
        file, _, _ = ask_hub(FILE, address, tmp_path)
        folder, _, _ = ask_hub(SNAPSHOT, address, tmp_path)
    assert file == f"{folder}/config.json"
    assert COMMIT in folder
    out, err, _ = ask_hub(SNAPSHOT, "http://127.0.0.1:9", tmp_path)
    assert out == folder
    assert (
        "model.path=google/gemma-7b-it: the hub does not answer or refuses; the copy in the cache is used."
        in err
    )
    assert ask_hub(SNAPSHOT, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")[:2] == (folder, "")


def test_only_the_files_that_match_are_fetched(tmp_path):
    with hub_with(MODEL) as address:
        folder, _, _ = ask_hub(SNAPSHOT, address, tmp_path)
    names = {path.name for path in tmp_path.rglob("*") if folder in str(path)} - {COMMIT}
    assert names == {"config.json", "model.safetensors"}


def test_a_part_in_the_cache_is_not_taken_for_the_whole_model(tmp_path):
    with hub_with(MODEL) as address:
        ask_hub(FILE, address, tmp_path)
    out, _, _ = ask_hub(SNAPSHOT, address, tmp_path, HF_HUB_OFFLINE="1")
    assert_one_line(out, "is not in this machine's cache, and HF_HUB_OFFLINE=1 forbids asking the hub")


def test_a_name_that_is_no_hub_id_is_said_to_be_none():
    from huggingface_hub.errors import HFValidationError

    error = hub.explain(HFValidationError("bad"), key="model.path", repo="my model", repo_type="model")
    assert str(error).startswith("model.path=my model is neither a local path nor a hub id (owner/name).")
    assert error.exit_code == 2


def test_an_error_nobody_foresaw_stays_one_line():
    error = hub.explain(
        RuntimeError("a\nb\n" + "c" * 1000), key="dataset.path", repo="a/b", repo_type="dataset"
    )
    assert str(error).startswith("dataset.path=a/b could not be had from the hub: RuntimeError a b ccc")
    assert "\n" not in str(error)
    assert len(str(error)) < 500
