"""The hub: the one place that asks it for files, and the words for what stands in the way."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gemma_ft.errors import HubError

REQUEST_SECONDS = 4.0
"""How long one request may stay without an answer."""
DEADLINE_SECONDS = 7.0
"""How long the first question may take in all: name resolution and every address of the host included."""

_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_WAY_OUT = "recipe=quickstart needs neither network nor account."
_LOG_IN = "run `hf auth login` or set HF_TOKEN"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the hub said to the first question about a repository."""

    commit: str | None = None
    """The commit that the revision stands for, if the hub told it."""
    failure: Exception | None = None
    """Why nothing can be fetched; what is cached can still be used."""


def ask(repo: str, *, revision: str | None, repo_type: str, name: str) -> Answer:
    """Find out quickly whether the hub answers for a repository, and as which commit.

    Downloads by huggingface_hub repeat a request that got no answer for minutes; this question is put once.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit; none means the main branch.
        repo_type: "model" or "dataset".
        name: A file to ask for; that it does not exist is an answer too.
    """
    # A thread, because no time-out of a request covers name resolution or a host with many dead addresses.
    answers: list[Answer] = []
    question = threading.Thread(
        target=lambda: answers.append(_put_question(repo, revision, repo_type, name)), daemon=True
    )
    question.start()
    question.join(DEADLINE_SECONDS)
    return answers[0] if answers else Answer(failure=TimeoutError(f"no answer within {DEADLINE_SECONDS:g} s"))


def _put_question(repo: str, revision: str | None, repo_type: str, name: str) -> Answer:
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            url = hf_hub_url(repo, name, repo_type=repo_type, revision=revision)
            return Answer(commit=get_hf_file_metadata(url, timeout=REQUEST_SECONDS).commit_hash)
        except RemoteEntryNotFoundError as missing:
            return Answer(commit=missing.response.headers.get("X-Repo-Commit"))
    except Exception as error:  # whatever it is, it is told apart in `explain`
        return Answer(failure=error)


def fetch_file(repo: str, name: str, *, key: str, revision: str | None, repo_type: str = "model") -> Path:
    """Download one file, or find it in the cache where the hub cannot be reached.

    Args:
        repo: Hub id.
        name: The file's path in the repository.
        key: The configuration key that named the repository, for the message.
        revision: Branch, tag or commit; none means the main branch.
        repo_type: "model" or "dataset".

    Raises:
        HubError: It can be had from neither.
    """
    from huggingface_hub import hf_hub_download

    def download(cached: bool) -> str:
        return hf_hub_download(repo, name, revision=revision, repo_type=repo_type, local_files_only=cached)

    return _fetch(download, repo, key=key, revision=revision, repo_type=repo_type, name=name)


def fetch_snapshot(repo: str, *, key: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of a model that match, or find them in the cache where the hub cannot be reached.

    Args:
        repo: Hub id.
        key: The configuration key that named the repository, for the message.
        revision: Branch, tag or commit; none means the main branch.
        patterns: Which files, as in a shell. From the cache, each pattern with a wildcard must match a file:
            a folder that holds a part of the repository is not taken for the whole.

    Returns:
        The folder that holds the files.

    Raises:
        HubError: They can be had from neither.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(cached: bool) -> str:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), local_files_only=cached
        )
        names = [file.relative_to(folder).as_posix() for file in Path(folder).rglob("*")]
        absent = [p for p in patterns if "*" in p and not any(fnmatch(name, p) for name in names)]
        if cached and absent:
            raise LocalEntryNotFoundError(f"no {absent[0]} in {folder}")
        return folder

    return _fetch(download, repo, key=key, revision=revision, repo_type="model", name="config.json")


def _fetch(
    download: Callable[[bool], str], repo: str, *, key: str, revision: str | None, repo_type: str, name: str
) -> Path:
    answer = ask(repo, revision=revision, repo_type=repo_type, name=name)
    try:
        path = Path(download(answer.failure is not None))
    except Exception as error:
        raise explain(answer.failure or error, key=key, repo=repo, repo_type=repo_type) from None
    tell_cached(answer, key=key, repo=repo)
    return path


def tell_cached(answer: Answer, *, key: str, repo: str) -> None:
    """Warn that the cached copy is used because the hub gave nothing; not where the user asked for that."""
    if answer.failure is not None and "OfflineModeIsEnabled" not in _kinds([answer.failure]):
        _log.warning("%s=%s: the hub does not answer or refuses; the copy in the cache is used.", key, repo)


@contextmanager
def cached_datasets_only(answer: Answer) -> Iterator[None]:
    """Let the datasets library look into its cache only, where the hub gave no answer.

    Its own switch is read from the environment once, at import; no argument of load_dataset does the same.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or answer.failure is not None
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def explain(error: Exception, *, key: str, repo: str, repo_type: str) -> HubError:
    """Say in one line what stands between this machine and a repository, and what to do.

    Args:
        error: Whatever huggingface_hub, datasets or the HTTP library raised.
        key: The configuration key that named the repository.
        repo: Hub id.
        repo_type: "model" or "dataset".
    """
    chain = _chain(error)
    page = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    other = " ".join(f"{type(error).__name__} {error}".split())[:300].rstrip(".")
    reason = _refused(chain, page) or _unreachable(chain) or _not_found(chain, repo_type, key)
    reason = reason or f"could not be had from the hub: {other}."
    return HubError(f"{key}={repo} {reason} {_WAY_OUT}")


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _kinds(chain: list[BaseException]) -> set[str]:
    # By name: huggingface_hub and datasets raise the classes of two HTTP libraries, httpx2 and httpx.
    return {kind.__name__ for error in chain for kind in type(error).__mro__}


def _status(chain: list[BaseException]) -> int | None:
    codes: list[Any] = [getattr(getattr(error, "response", None), "status_code", None) for error in chain]
    return next((code for code in codes if isinstance(code, int)), None)


def _refused(chain: list[BaseException], page: str) -> str | None:
    """Word a refusal that a login, a token or an accepted licence would lift."""
    from huggingface_hub import get_token

    told = " ".join(str(error) for error in chain).lower()
    status = _status(chain)
    gated = "GatedRepoError" in _kinds(chain) or "is a gated dataset" in told
    if "invalid credentials" in told or (status == 401 and get_token() is not None and gated):
        return f"is refused: the hub does not accept the token in use. Renew it: {_LOG_IN}."
    if gated and (status == 401 or "must be authenticated" in told):
        return f"asks for a login and an accepted licence. Accept it at {page}, then {_LOG_IN}."
    if "fine-grained" in told:
        return f"is refused: the token may not read gated repositories. Use a read token: {_LOG_IN}."
    if gated:
        return f"is refused: this account has not accepted its licence. Accept it at {page} and start again."
    if status == 403:
        return f"is refused to this account. Accept its licence or ask for access at {page}, or {_LOG_IN}."
    if status == 401:
        return f"is not on the hub, or asks for a login. Check the spelling and {page}, then {_LOG_IN}."
    return None


def _unreachable(chain: list[BaseException]) -> str | None:
    """Word a hub that cannot be asked, or gave no usable answer."""
    from huggingface_hub import constants

    kinds, status = _kinds(chain), _status(chain)
    away = "is not in this machine's cache, and"
    if "OfflineModeIsEnabled" in kinds:
        found = [name for name in _OFFLINE_VARIABLES if os.environ.get(name)]
        switch = f"{found[0]}={os.environ[found[0]]}" if found else "HF_HUB_OFFLINE=1"
        return f"{away} {switch} forbids asking the hub. Unset it, or give a local folder."
    if status == 429 or (status is not None and status >= 500):
        return f"{away} the hub answers with error {status}. Try again later."
    if status is None and kinds & {"TransportError", "TimeoutError", "ConnectionError", "TimeoutException"}:
        return f"{away} the hub ({constants.ENDPOINT}) does not answer. Check the network."
    return None


def _not_found(chain: list[BaseException], repo_type: str, key: str) -> str | None:
    """Word a repository, revision or file that is not there."""
    kinds, told = _kinds(chain), str(chain[0])
    if "RevisionNotFoundError" in kinds or ("DatasetNotFoundError" in kinds and told.startswith("Revision")):
        return f"has no such revision on the hub. Check {key.rpartition('.')[0]}.revision."
    if "RemoteEntryNotFoundError" in kinds:
        missing = re.search(r"/resolve/[^/]+/([^\s?]+?)\.?(?:\s|$)", told)
        return (
            f"has no {missing.group(1) if missing else 'such file'} on the hub. Choose another {repo_type}."
        )
    if "HFValidationError" in kinds:
        return "is neither a local path nor a hub id (owner/name). Check the spelling."
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"} or _status(chain) == 404:
        return f"is not on the hub, or private. Check the spelling; for a private {repo_type}, {_LOG_IN}."
    if "LocalEntryNotFoundError" in kinds:
        return "is not complete in this machine's cache. Connect to the network once."
    return None
