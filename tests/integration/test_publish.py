"""Uploads to a hub: refused before the work, resumed after a cut, verified, and the token never shown."""

import os
import re
import signal
import subprocess
import sys

import pytest
from hub_stand_in import Uploads, ask_hub, hub_that_refuses, hub_that_takes, silent_hub

from gemma_ft.exporting import hub_account

SECRET = "hf_aSecretThatMustNotBeShown"
REPOSITORY = "me/quotes"
CHECK = """
import logging
logging.basicConfig(level=logging.DEBUG)
from gemma_ft.exporting.publish import check_push
check_push("me/quotes", private={private})
print("may be pushed")
"""
PUSH = """
import logging
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from gemma_ft.exporting.publish import push_to_hub
print(push_to_hub(Path("{folder}"), "{repository}", private={private}))
"""
NO_XET = {"HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def uploads():
    return Uploads(token=SECRET)


@pytest.fixture
def folder(tmp_path):
    """A folder of three shards and small files."""
    made = tmp_path / "merged"
    made.mkdir()
    for number in (1, 2, 3):
        (made / f"model-0000{number}-of-00003.safetensors").write_bytes(bytes([number]) * 5000)
    (made / "model.safetensors.index.json").write_text('{"metadata": {}}')
    (made / "README.md").write_text("# quotes\n")
    (made / ".README.md.partial").write_text("# qu")
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def check(address, home, private=True, **environment):
    out, err, _ = ask_hub(CHECK.format(private=private), address, home, **{"HF_TOKEN": SECRET, **environment})
    assert SECRET not in out + err
    assert out.count("\n") == 0, out
    return out, err


def push(address, home, folder, private=True, repository=REPOSITORY, **environment):
    code = PUSH.format(folder=folder, private=private, repository=repository)
    out, err, _ = ask_hub(code, address, home, **{"HF_TOKEN": SECRET, **environment})
    assert SECRET not in out + err
    assert not [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    return out, err


@pytest.mark.parametrize("environment", [{}, NO_XET], ids=["pipelined", "single commit"])
@pytest.mark.parametrize("private", [True, False])
def test_small_files_are_uploaded_into_a_repository_made_for_them(
    private, environment, uploads, folder, tmp_path
):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    before = contents(folder)
    with hub_that_takes(uploads) as address:
        out, _ = push(address, tmp_path / "home", folder, private, **environment)
    assert out == f"{address}/{REPOSITORY}"
    assert uploads.files[REPOSITORY] == before == contents(folder)
    assert uploads.private[REPOSITORY] is private


def test_weights_are_uploaded_and_a_second_time_nothing_is_sent(uploads, folder, tmp_path):
    with hub_that_takes(uploads) as address:
        push(address, tmp_path / "home", folder, **NO_XET)
        assert uploads.files[REPOSITORY] == contents(folder)
        assert len(uploads.received) == 3
        out, _ = push(address, tmp_path / "home", folder, **NO_XET)
    assert out == f"{address}/{REPOSITORY}"
    assert len(uploads.received) == 3
    assert sorted(path.name for path in folder.iterdir()) == sorted([*contents(folder), ".README.md.partial"])


def test_an_upload_that_is_killed_goes_on_where_it_was_cut(uploads, folder, tmp_path):
    clients = []

    def kill_at_the_second(count):
        if count == 1 and clients:
            clients.pop().send_signal(signal.SIGKILL)
        return count == 0

    uploads.takes_content = kill_at_the_second
    code = PUSH.format(folder=folder, private=True, repository=REPOSITORY)
    with hub_that_takes(uploads) as address:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_TOKEN": SECRET}
        environment |= {"HF_HOME": str(tmp_path / "home"), **NO_XET}
        program = [sys.executable, "-c", code]
        with subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL) as client:
            clients.append(client)
            assert client.wait(60) == -signal.SIGKILL
        assert uploads.files[REPOSITORY] == {}
        assert len(uploads.received) == 1
        uploads.takes_content = lambda count: True
        push(address, tmp_path / "home", folder, **NO_XET)
    assert uploads.files[REPOSITORY] == contents(folder)
    assert len(uploads.received) == len(set(uploads.received)) == 3


def test_shards_of_an_earlier_upload_are_removed_and_other_files_are_not(uploads, folder, tmp_path):
    uploads.add(REPOSITORY, private=True)
    others = {".gitattributes": b"x", "notes.txt": b"mine", "adapter_model.safetensors": b"a"}
    stale = dict.fromkeys(("model.safetensors", "model-00001-of-00002.safetensors"), b"old")
    stale["certificate.json"] = b"of the old weights"
    uploads.files[REPOSITORY] = {**others, **stale}
    with hub_that_takes(uploads) as address:
        push(address, tmp_path / "home", folder, **NO_XET)
    assert uploads.files[REPOSITORY] == {**others, **contents(folder)}


def test_a_whole_model_and_an_adapter_are_not_uploaded_into_one_repository(uploads, folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    uploads.add("me/adapter", private=True)
    uploads.files["me/adapter"] = {"adapter_config.json": b"{}"}
    uploads.add("me/whole", private=True)
    uploads.files["me/whole"] = {"config.json": b"{}"}
    before = {name: dict(files) for name, files in uploads.files.items()}
    with hub_that_takes(uploads) as address:
        onto_adapter, _ = push(address, tmp_path / "home", folder, repository="me/adapter")
        onto_whole, _ = push(address, tmp_path / "home", adapter, repository="me/whole")
    assert onto_adapter == (
        "HubError export.push_to_hub=me/adapter holds an adapter, and a whole model beside it would be "
        "loaded as one with it. Choose another name."
    )
    assert "me/whole holds a whole model, and an adapter beside it would be loaded as one" in onto_whole
    assert uploads.files == before


def test_an_adapter_removes_nothing(uploads, tmp_path):
    uploads.add(REPOSITORY, private=True)
    uploads.files[REPOSITORY] = {"model.safetensors": b"old"}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with hub_that_takes(uploads) as address:
        push(address, tmp_path / "home", tmp_path / "adapter")
    assert uploads.files[REPOSITORY].keys() == {"model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize("name", ["README.md", "model-00002-of-00003.safetensors"])
@pytest.mark.parametrize(
    "how", [lambda data: data[:-1] + b"?", lambda data: data[:-1]], ids=["bytes", "size"]
)
def test_what_arrives_differently_is_found(name, how, uploads, folder, tmp_path):
    uploads.spoil = lambda files: files.update({name: how(files[name])})
    with hub_that_takes(uploads) as address:
        out, _ = push(address, tmp_path / "home", folder, **NO_XET)
    assert out.startswith(f"HubError export.push_to_hub={REPOSITORY} has got another {name} than {folder}/")


def test_what_does_not_arrive_is_found(uploads, folder, tmp_path):
    uploads.spoil = lambda files: files.pop("README.md")
    with hub_that_takes(uploads) as address:
        out, _ = push(address, tmp_path / "home", folder, **NO_XET)
    assert f"has got another README.md than {folder}/README.md. Export again, and leave both alone" in out


def test_an_upload_that_fails_on_its_way_says_that_it_goes_on(uploads, folder, tmp_path):
    uploads.add(REPOSITORY, private=True)
    uploads.refuse_writing = True
    with hub_that_takes(uploads) as address:
        out, _ = push(address, tmp_path / "home", folder, **NO_XET)
    assert out.startswith(
        f"HubError export.push_to_hub={REPOSITORY} is refused: the token in use may not write"
    )
    assert out.endswith("What has arrived is kept: the same line goes on from there.")


def test_a_repository_that_may_be_written_passes(uploads, tmp_path):
    with hub_that_takes(uploads) as address:
        assert check(address, tmp_path)[0] == "may be pushed"
        uploads.add(REPOSITORY, private=True)
        assert check(address, tmp_path)[0] == "may be pushed"
        out, err = check(address, tmp_path, private=False)
        assert out == "may be pushed"
        assert "me/quotes is there already and private; it stays so." in err
    assert uploads.files == {REPOSITORY: {}}


def test_what_is_there_and_public_is_refused_unless_public_was_asked_for(uploads, folder, tmp_path):
    uploads.add(REPOSITORY, private=False)
    with hub_that_takes(uploads) as address:
        for out, _ in (check(address, tmp_path), push(address, tmp_path / "home", folder)):
            assert out == (
                "HubError export.push_to_hub=me/quotes is there already and public. Make it private in its "
                "settings, choose another name, or say export.private=false."
            )
        assert uploads.files[REPOSITORY] == {}
        assert check(address, tmp_path, private=False)[0] == "may be pushed"


ACCOUNTS = {
    "another's": (
        {"name": "you", "orgs": [{"name": "team", "roleInOrg": "write"}]},
        r"belongs to me, where the account you cannot write. Choose among you/..., team/....",
    ),
    "a reader of the team": (
        {"name": "you", "orgs": [{"name": "me", "roleInOrg": "read"}]},
        "belongs to me, where the account you may only read. Ask there for the right to write.",
    ),
    "a token to read": (
        {"access": {"role": "read"}},
        "is refused: the token in use may not write there. Make one that may at "
        "https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN.",
    ),
    "a token for something else": (
        {
            "access": {
                "role": "fineGrained",
                "fineGrained": {
                    "global": ["discussion.write"],
                    "scoped": [
                        {"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read"]},
                        {"entity": {"type": "org", "name": "team"}, "permissions": ["repo.write"]},
                    ],
                },
            }
        },
        "is refused: the token in use may not write there. Make one that may",
    ),
}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_an_account_that_may_not_write_is_told_before_anything_is_done(case, tmp_path):
    account, said = ACCOUNTS[case]
    uploads = Uploads(token=SECRET, **account)
    with hub_that_takes(uploads) as address:
        out, _ = check(address, tmp_path)
    assert out.startswith(f"HubError export.push_to_hub=me/quotes {said}")
    assert uploads.files == {}


@pytest.mark.parametrize("entity", [{"type": "user", "name": "me"}, {"type": "model", "name": REPOSITORY}])
def test_a_token_that_lists_the_right_may_write(entity, tmp_path):
    scoped = [{"entity": entity, "permissions": ["repo.content.read", "repo.write"]}]
    access = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}
    with hub_that_takes(Uploads(token=SECRET, access=access)) as address:
        assert check(address, tmp_path)[0] == "may be pushed"


def test_another_token_is_not_accepted(tmp_path):
    with hub_that_takes(Uploads(token="hf_other")) as address:
        out, _ = check(address, tmp_path)
    assert out == (
        "HubError export.push_to_hub=me/quotes is refused: the hub does not accept the token in use. "
        "Renew it: run `hf auth login` or set HF_TOKEN."
    )


REFUSALS = {
    "offline by another name": (
        {"TRANSFORMERS_OFFLINE": "1"},
        200,
        "cannot be uploaded to, since TRANSFORMERS_OFFLINE forbids asking the hub. Unset it,",
    ),
    "no token": (
        {"HF_TOKEN": ""},
        200,
        "needs a token with write access, and there is none here: run `hf auth login` or set HF_TOKEN, "
        "or add export.push_to_hub=null.",
    ),
    "forbidden": ({}, 403, "is refused: the token in use may not write there"),
    "broken": ({}, 503, "cannot be uploaded to now: the hub answers with error 503. Try again later."),
    "too often": ({}, 429, "cannot be uploaded to now: the hub answers with error 429. Try again later."),
    "offline": (
        {"HF_HUB_OFFLINE": "1"},
        200,
        "cannot be uploaded to, since HF_HUB_OFFLINE forbids asking the hub. Unset it, or add "
        "export.push_to_hub=null.",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_is_one_line_that_says_what_to_do(case, tmp_path):
    environment, status, said = REFUSALS[case]
    with hub_that_refuses(status) as address:
        out, _ = check(address, tmp_path, **environment)
    assert out.startswith(f"HubError export.push_to_hub=me/quotes {said}")


def test_a_hub_that_says_nothing_is_given_up(tmp_path):
    with silent_hub() as address:
        out, _ = check(address, tmp_path)
    assert out.endswith(f"cannot be uploaded to: the hub ({address}) does not answer. Check the network.")
    out, _ = check("http://127.0.0.1:9", tmp_path)
    assert out.endswith("the hub (http://127.0.0.1:9) does not answer. Check the network.")


def test_a_name_that_the_hub_does_not_allow_is_told(uploads, folder, tmp_path):
    with hub_that_takes(uploads) as address:
        out, _ = push(address, tmp_path / "home", folder, repository="me/a--b")
    assert out == (
        "HubError export.push_to_hub=me/a--b is no name that the hub allows. "
        "Write it like export.push_to_hub=user/name."
    )


def test_an_error_nobody_foresaw_stays_one_line_without_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    error = hub_account.explain(RuntimeError(f"a\n{SECRET}\n" + "c" * 999), REPOSITORY, begun=True)
    assert str(error).startswith("export.push_to_hub=me/quotes was not uploaded: RuntimeError a <token> ccc")
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError(
                "Network error: Request error: HTTP status client error (403 Forbidden), domain: x"
            ),
            "is refused: the token in use may not write there.",
        ),
        (
            ConnectionError("Network error: HTTP status server error (502 Bad Gateway), domain: x"),
            "cannot be uploaded to now: the hub answers with error 502. Try again later.",
        ),
        (
            type("XetAuthenticationError", (Exception,), {})("x"),
            "is refused: the hub does not accept the token",
        ),
        (
            ConnectionError("reset"),
            r"cannot be uploaded to: the hub \(.*\) does not answer. Check the network.",
        ),
    ],
)
def test_what_hf_xet_raises_is_told_in_the_same_words(error, said):
    line = str(hub_account.explain(error, REPOSITORY, begun=True))
    assert re.match(rf"export\.push_to_hub=me/quotes {said}", line), line
    assert line.endswith("What has arrived is kept: the same line goes on from there.")
