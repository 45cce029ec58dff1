"""What counts as a secret, what stands in its place, and a configuration that holds one."""

import base64
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.export import ExportConfig
from gemma_ft.config.rows import MixturePart
from gemma_ft.config.schema import ModelConfig, RunConfig, TrackingConfig
from gemma_ft.config.secret_values import find_secret_problems
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.secrets import is_secret_name, kept_out_of_logs, print_traceback, redact

HUB = "hf_" + "Pl4nted" * 5
WANDB = "0123456789abcdef" * 2 + "01234567"
ODD = 'p@ss"w/o\\rd+1'


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    for name in list(os.environ):
        if is_secret_name(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HOME", "HF_TOKEN_PATH", "NETRC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "MY_SERVICE_PASSWORD",
        "PGPASSWORD",
        "GH-TOKEN",
        "db_passwd",
        "GOOGLE_CREDENTIALS",
        "REGISTRY_AUTH",
        "MYSQL_PWD",
        "SLACK_WEBHOOK_URL",
        "githubToken",
        "SECRETKEY",
        "MY_SECRETVALUE",
    ],
)
def test_a_name_says_that_its_value_is_secret(name, monkeypatch):
    monkeypatch.setenv(name, "correct-horse")
    assert redact("before correct-horse after") == f"before [secret {name}] after"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "trueorfalse"),
        ("KEYBOARD_LAYOUT", "dvorak-de"),
        ("SSH_AUTH_SOCK", "/somewhere/agent"),
        ("MONKEY_HOUSE", "open-today"),
        ("MAX_TOKENS", "100000000"),
        ("GIT_AUTHOR_NAME", "Jane Doe-Smith"),
        ("PWD", "/somewhere/else"),
        ("WANDB_AUTH_MODE", "interactively"),
        ("GIT_AUTH", "required"),
        ("HF_TOKEN", "short"),
        ("SOME_KEY", "xxxxxxxxxxxx"),
        ("HF_TOKEN_PATH", "/somewhere/token"),
    ],
)
def test_settings_and_places_are_no_secrets(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert redact(f"before {value} after") == f"before {value} after"


def test_the_path_of_a_key_file_is_no_secret(monkeypatch, tmp_path):
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert redact(f"{tmp_path}/key.json") == f"{tmp_path}/key.json"


def test_a_secret_is_found_as_urls_json_and_python_write_it(monkeypatch):
    from urllib.parse import quote

    monkeypatch.setenv("MY_SERVICE_PASSWORD", ODD)
    header = base64.b64encode(f"api:{ODD}".encode()).decode()
    for written in (ODD, quote(ODD, safe=""), json.dumps({"x": ODD}), repr({"x": ODD}), header):
        clean = redact(written)
        assert "[secret MY_SERVICE_PASSWORD]" in clean
        assert "ss" not in clean.replace("[secret MY_SERVICE_PASSWORD]", "")
    assert json.loads(redact(json.dumps({"x": ODD}))) == {"x": "[secret MY_SERVICE_PASSWORD]"}


def test_a_secret_that_begins_another_leaves_no_rest(monkeypatch):
    monkeypatch.setenv("A_KEY", "abcdefgh1")
    monkeypatch.setenv("B_KEY", "abcdefgh1-and-more")
    assert redact("abcdefgh1-and-more abcdefgh1") == "[secret B_KEY] [secret A_KEY]"


def test_every_line_of_a_key_is_a_secret(monkeypatch):
    monkeypatch.setenv("SSH_KEY", "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n")
    assert redact("line kqhkiG9w0BAQEF") == "line [secret SSH_KEY]"


def test_the_password_of_an_address_is_a_secret_by_itself(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:swordfish99@proxy:80")
    assert redact("refused: swordfish99") == "refused: [secret HTTPS_PROXY]"


def test_token_files_and_netrc_are_read_again_when_they_change(monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "huggingface"
    folder.mkdir(parents=True)
    (folder / "token").write_text("from-the-token-file\n")
    (folder / "stored_tokens").write_text("[mine]\nhf_token = from-the-stored-ones\n")
    (tmp_path / ".netrc").write_text("machine x login y password from-the-netrc\n")
    told = "from-the-token-file from-the-stored-ones from-the-netrc"
    assert redact(told) == "[secret hub token] [secret stored hub token] [secret netrc]"
    (folder / "token").write_text("another-token-altogether\n")
    assert redact("another-token-altogether") == "[secret hub token]"
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").write_text("token-of-elsewhere")
    assert redact("token-of-elsewhere") == "[secret hub token]"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"token {HUB}", "token [secret]"),
        ("https://me:swordfish@host/x", "https://[secret]@host/x"),
        (f"https://{'t' * 20}@host/x", "https://[secret]@host/x"),
        ("Authorization: Basic bWU6c3dvcmQ=", "Authorization: Basic [secret]"),
        ("{'authorization': 'Bearer swordfish'}", "{'authorization': 'Bearer [secret]'}"),
        ("Bearer sword1fish", "Bearer [secret]"),
        ("x?rows=1&X-Amz-Signature=abc&a=b", "x?rows=1&X-Amz-Signature=[secret]&a=b"),
        (f"wandb: {WANDB}", "wandb: [secret]"),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ("ghp_" + "a1" * 18, "[secret]"),
        ("sk-proj-" + "a1" * 18, "[secret]"),
        ("hub_token=whatever-it-is", "hub_token=[secret]"),
        ('{"password": "swordfish"}', '{"password": "[secret]"}'),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[secret]"),
    ],
    ids=itertools.count(),  # pytest tells the running test's name in the environment
)
def test_known_shapes_are_secrets_wherever_they_come_from(text, clean):
    assert redact(text) == clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:x/y and ssh://git@github.com/x",
        f'"revision": "{WANDB}"',
        '"num_tokens": 123456789, "pad_token": "<end_of_turn>"',
        "hf_hub_download, hf_transfer, sk-learn-is-a-library-for-people",
        "the bearer understands basic arithmetic",
        "https://host:8080/path@revision",
        "google/gemma-7b-it step 20/20  loss 1.2345  1,234 tokens/s",
    ],
)
def test_innocent_text_stays(text):
    assert redact(text) == text


def test_log_lines_and_their_tracebacks_are_clean_whoever_writes_them(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", HUB)
    log = logging.getLogger("some.library")
    handler = logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    try:
        with kept_out_of_logs():
            log.warning("asked with %s, %d times", HUB, 3)
            log.warning("%d things", 3)
            try:
                raise ValueError(f"header {HUB}")
            except ValueError:
                log.exception("refused")
        log.warning("after: %s", HUB)
    finally:
        log.removeHandler(handler)
    said = capsys.readouterr().err
    assert "asked with [secret HF_TOKEN], 3 times\n3 things\nrefused\nTraceback" in said
    assert "ValueError: header [secret HF_TOKEN]\nafter: hf_Pl4" in said
    assert said.count(HUB) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_warnings_and_threads_are_clean_too(capsys):
    def fail():
        raise ValueError(HUB)

    before = warnings.formatwarning, threading.excepthook
    with kept_out_of_logs():
        assert "[secret]" in warnings.formatwarning(HUB, UserWarning, "file", 1)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert (warnings.formatwarning, threading.excepthook) == before
    said = capsys.readouterr().err
    assert "ValueError: [secret]" in said
    assert HUB not in said


def test_an_uncaught_error_is_printed_without_its_secret():
    code = (
        "import sys; from gemma_ft.secrets import print_traceback; sys.excepthook = print_traceback\n"
        "import os; raise ValueError('asked with ' + os.environ['MY_TOKEN'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MY_TOKEN": "swordfish99"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: asked with [secret MY_TOKEN]" in done.stderr
    assert "swordfish99" not in done.stderr


def test_print_traceback_takes_an_error_without_a_trace(capsys):
    print_traceback(ValueError, ValueError(HUB))
    assert capsys.readouterr().err == "ValueError: [secret]\n"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            RunConfig(dataset=DatasetConfig(path="https://me:swordfish@host/x.jsonl")),
            "dataset.path holds a secret, which config.yaml would keep. Take it out: download what it "
            "protects, and give the file's path.",
        ),
        (
            RunConfig(model=ModelConfig(path=f"https://{HUB}@host/model")),
            "model.path holds a secret, which config.yaml would keep. Take it out, and run `hf auth login` "
            "or set HF_TOKEN.",
        ),
        (
            RunConfig(trainer=TrainerConfig(extra={"hub_token": "swordfish99"})),
            "trainer.extra.hub_token holds a secret, which config.yaml would keep. Take it out, and run "
            "`hf auth login` or set HF_TOKEN.",
        ),
        (
            RunConfig(trainer=TrainerConfig(extra={"x": {"y": [f"a {HUB}"]}})),
            "trainer.extra.x.y holds a secret, which config.yaml would keep. Take it out, and run "
            "`hf auth login` or set HF_TOKEN.",
        ),
        (
            RunConfig(dataset=DatasetConfig(mixture={"a": MixturePart(path="https://me:swordfish@host")})),
            "dataset.mixture.a.path holds a secret, which config.yaml would keep. Take it out: download "
            "what it protects, and give the file's path.",
        ),
        (
            RunConfig(export=ExportConfig(push_to_hub="me/in-the-environment")),
            "export.push_to_hub holds the value of OTHER_SECRET, which config.yaml would keep. Take it out; "
            "what needs it reads it from the environment.",
        ),
        (
            RunConfig(tracking=TrackingConfig(project="in-the-environment")),
            "tracking.project holds the value of OTHER_SECRET, which config.yaml would keep. Take it out, "
            "and run `wandb login` or set WANDB_API_KEY.",
        ),
        (
            RunConfig(trainer=TrainerConfig(extra={HUB: 1, "a" + HUB: "x"})),
            None,
        ),
    ],
)
def test_a_secret_in_the_configuration_is_named_by_its_key_and_never_shown(config, said, monkeypatch):
    monkeypatch.setenv("OTHER_SECRET", "in-the-environment")
    problems = find_secret_problems(config)
    if said is not None:
        assert problems == [said]
    assert problems
    assert not any(secret in line for line in problems for secret in (HUB, "swordfish", "in-the-env"))


def test_a_prompt_may_speak_of_passwords(monkeypatch):
    monkeypatch.setenv("OTHER_SECRET", "in-the-environment")
    prompt = TrainerConfig(
        sample_prompt="the password: swordfish, what is it?", extra={"pad_token": "<end_of_turn>"}
    )
    assert find_secret_problems(RunConfig(trainer=prompt)) == []
    told = TrainerConfig(sample_prompt="my secret in-the-environment, what is it?")
    assert find_secret_problems(RunConfig(trainer=told)) == [
        "trainer.sample_prompt holds the value of OTHER_SECRET, which config.yaml would keep. Take it out; "
        "what needs it reads it from the environment."
    ]


def test_every_recipe_is_free_of_secrets():
    from gemma_ft.config.catalog import load_recipes
    from gemma_ft.config.compose import compose

    for recipe in load_recipes():
        assert find_secret_problems(compose(f"recipe={recipe.name}")) == []
