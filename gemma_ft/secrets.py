"""Secrets: what must reach neither a file nor a screen, and the one place that takes it out of a text.

A secret is known by its value (environment variables whose names say so, token files, netrc) or by its shape.
"""

import configparser
import json
import logging
import netrc
import os
import re
import sys
import threading
import traceback
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote

_SHORTEST = 8
"""Characters; a shorter value would be found in innocent words."""
_SECRET_WORD = re.compile(
    r"TOKEN|KEYS?|PWD|PASS|PASSCODE|PASSPHRASE|PAT|CREDS?|CREDENTIALS?|AUTH|AUTHORIZATION|BEARER|COOKIE|DSN|WEBHOOK"
    r"|\w*(?:PASSWORD|PASSWD|SECRET|APIKEY)\w*|\w+(?:PASSPHRASE|TOKEN)|(?:ACCESS|PRIVATE|SIGNING)KEY"
)
"""A word of a name; those of the second line may be joined to another one, as in PGPASSWORD."""
_HARMLESS_ENDINGS = ("PATH", "FILE", "DIR", "SOCK", "HOME", "HELPER", "METHOD", "TYPE", "MODE")
_HARMLESS_NAMES = frozenset(("PWD", "OLDPWD", "GPG_KEY"))
_HARMLESS_VALUES = frozenset(("anonymous", "disabled", "interactive", "preferred", "publickey", "required"))
_HUB_TOKEN, _HUB_TOKENS = "hub token", "stored hub token"
_PASSWORD_IN_URL = re.compile(r"://[^\s/@:]*:([^\s/@]+)@")

_START = r"(?<![A-Za-z0-9])"
_QUOTED = r"['\"]?\s*[:=]\s*['\"]?"
_SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        rf"{_START}(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9]{{16,}}",
        rf"{_START}wandb_v\d+_\w{{20,}}",
        rf"{_START}[sr]k[-_](?=[\w-]*\d)[\w-]{{20,}}",
        rf"{_START}(?:gh[pousr]_[A-Za-z0-9]{{20,}}|github_pat_\w{{20,}}|glpat-[\w-]{{16,}})",
        rf"{_START}(?:(?:AKIA|ASIA)[0-9A-Z]{{16}}|AIza[\w-]{{35}}|npm_[A-Za-z0-9]{{36}})",
        rf"{_START}(?:xox[abeoprs]-[\w-]{{10,}}|pypi-[\w-]{{50,}}|eyJ[\w-]{{8,}}\.[\w-]{{8,}}\.[\w-]{{8,}})",
        r"(?P<kept>://)(?:[^\s/@:'\"<>]*:[^\s/@'\"<>]+|[^\s/@:'\"<>]{16,})(?=@)",
        r"(?i)(?P<kept>[?&][\w.-]*(?:token|secret|signature|sig|key|password|credential|policy)=)[^\s&'\"#]+",
        rf"(?i)(?P<kept>\bauthorization{_QUOTED}(?:(?:basic|bearer|token)\s+)?)[^\s'\",]{{8,}}",
        r"(?i)(?P<kept>\b(?:bearer|basic)\s+)(?=[^\s'\"]*\d)[\w.~+/=-]{8,}",
        r"(?i)(?P<kept>(?:wandb|key|token|secret)['\"]?\W{1,4})[0-9a-f]{40}(?![0-9a-f])",
        r"(?i)(?P<kept>(?:(?:api|hub|access|auth|refresh|client|private|secret)[_-]?(?:token|key|secret)"
        rf"|password|passwd|passphrase){_QUOTED})(?!\[secret)[^\s'\",;&]{{8,}}",
    )
)
"""What is a secret by its shape or by what stands before it; the latter is kept, so that texts stay clear."""


def redact(text: str) -> str:
    """Replace every secret in a text by a marker that names its source, like `[secret HF_TOKEN]`."""
    for value, source in _known():
        if value in text:
            text = text.replace(value, f"[secret {source}]")
    for pattern in _SHAPES:
        text = pattern.sub(_marked, text)
    return text


def _marked(found: re.Match[str]) -> str:
    return f"{found.groupdict().get('kept', '')}[secret]"


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Tell whether a variable or a key of this name is one that holds a secret."""
    words = [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]
    if not words or name.upper() in _HARMLESS_NAMES or words[-1] in _HARMLESS_ENDINGS:
        return False
    return any(_SECRET_WORD.fullmatch(word) for word in words)


@contextmanager
def kept_out_of_logs() -> Iterator[None]:
    """Redact what loggers, warnings and threads of this process say while this lasts, tracebacks included."""
    make_record, format_warning, tell_thread = (
        logging.getLogRecordFactory(),
        warnings.formatwarning,
        threading.excepthook,
    )

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _clean(make_record(*args, **kwargs))

    logging.setLogRecordFactory(make)
    warnings.formatwarning = lambda *args, **kwargs: redact(format_warning(*args, **kwargs))
    threading.excepthook = _print_thread
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning, threading.excepthook = format_warning, tell_thread


def _clean(record: logging.LogRecord) -> logging.LogRecord:
    with suppress(Exception):  # a record that cannot be formatted is the logger's own affair
        said = record.getMessage()
        if (clean := redact(said)) != said:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (clean := redact(trace)) != trace:
                record.exc_text = clean  # a formatter takes this as it is
    return record


def _print_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is not SystemExit and ended.exc_value is not None:
        print_traceback(ended.exc_type, ended.exc_value, ended.exc_traceback)


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None = None
) -> None:
    """Print an error as Python does, without secrets; made to be `sys.excepthook`."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _known() -> list[tuple[str, str]]:
    """List the secrets of this machine in every form they may be written in, the longest first."""
    found: dict[str, str] = {}
    for value, source in _values():
        for form in _forms(value):
            if len(form) >= _SHORTEST:
                found.setdefault(form, source)
    return sorted(found.items(), key=lambda item: -len(item[0]))


def _values() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if "://" in value and (found := _PASSWORD_IN_URL.search(value)):
            yield unquote(found[1]), name
        if len(value) >= _SHORTEST and is_secret_name(name) and not _is_harmless(value):
            yield value, name
    for source, path in _token_files():
        with suppress(OSError):
            facts = path.stat()
            for value in _read_secrets(source, path, facts.st_mtime_ns, facts.st_size):
                yield value, source


def _is_harmless(value: str) -> bool:
    """Tell whether a value is a setting, a placeholder or the path of a file."""
    if value.lower() in _HARMLESS_VALUES or len(set(value)) == 1:
        return True
    with suppress(OSError, RuntimeError):
        return value[0] in "/~." and Path(value).expanduser().exists()
    return False


@lru_cache(maxsize=1024)
def _forms(value: str) -> tuple[str, ...]:
    """Write a value as it is, as URLs, JSON, Python and HTTP headers do; of several lines, each by itself."""
    lines = value.splitlines() if "\n" in value else ()
    return (
        value,
        value.strip(),
        quote(value, safe=""),
        quote_plus(value),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
        *(b64encode(f"{user}{value}".encode()).decode() for user in ("", "api:", "user:")),
        *(line.strip() for line in lines if "PRIVATE KEY" not in line),
    )


def _token_files() -> Iterator[tuple[str, Path]]:
    """Yield the files of this user that hold tokens."""
    home = Path(os.environ.get("HOME") or os.path.expanduser("~"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    token = Path(os.environ.get("HF_TOKEN_PATH") or hub / "token").expanduser()
    yield _HUB_TOKEN, token
    yield _HUB_TOKENS, token.with_name("stored_tokens")
    yield "netrc", Path(os.environ.get("NETRC") or home / ".netrc").expanduser()


@lru_cache(maxsize=16)
def _read_secrets(source: str, path: Path, changed: int, size: int) -> tuple[str, ...]:
    """Read a token file; its age and size are asked for so that a changed one is read again."""
    with suppress(OSError, ValueError, configparser.Error, netrc.NetrcParseError):
        if source == _HUB_TOKEN:
            return (path.read_text(encoding="utf-8").strip(),)
        if source == _HUB_TOKENS:
            table = configparser.ConfigParser(interpolation=None)
            table.read_string(path.read_text(encoding="utf-8"))
            return tuple(table[name].get("hf_token", "") for name in table.sections())
        return tuple(entry[2] or "" for entry in netrc.netrc(path).hosts.values())
    return ()
