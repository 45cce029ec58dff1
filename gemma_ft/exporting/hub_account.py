"""Whether the hub lets this machine write to a repository, and the words for it where it does not."""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from gemma_ft import hub
from gemma_ft.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_T = TypeVar("_T")
_LOG_IN = "run `hf auth login` or set HF_TOKEN"
_NO_UPLOAD = "export.push_to_hub=null"
"""What a run needs that was made with a repository, and is exported where none can be written to."""
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
"""How hf_xet tells an answer of the hub, as a ConnectionError."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TOKENS = "https://huggingface.co/settings/tokens"
_READ_ONLY = (
    f"is refused: the token in use may not write there. Make one that may at {_TOKENS}, then {_LOG_IN}."
)
_WRITING = ("repo.write", "repo.content.write")


def within_deadline(question: Callable[[], _T]) -> _T:
    """Put a question to the hub, and give up where no answer comes within seconds.

    Raises:
        TimeoutError: There was no answer.
    """
    # A thread, because no time-out of a request covers name resolution or a host with many dead addresses.
    answers: list[_T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # it is raised again below, where somebody waits for it
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(hub.DEADLINE_SECONDS)
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError(f"no answer within {hub.DEADLINE_SECONDS:g} s")
    return answers[0]


def check_account(api: "HfApi", repository: str) -> None:
    """Check that there is a token, that the hub accepts it, and that it may write to the repository.

    Raises:
        HubError: It is not so, or the hub cannot be asked.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise refusal(
            repository,
            f"needs a token with write access, and there is none here: {_LOG_IN}, or add {_NO_UPLOAD}.",
        )
    try:
        account = within_deadline(lambda: api.whoami(cache=True))
    except Exception as error:  # whatever it is, it is told apart in `explain`
        raise explain(error, repository) from None
    if problem := _obstacle(account, repository):
        raise refusal(repository, problem)


def _obstacle(account: Mapping[str, Any], repository: str) -> str | None:
    """Word what keeps an account from writing, as far as it tells."""
    owner = repository.partition("/")[0]
    teams = {team.get("name"): team.get("roleInOrg") for team in account.get("orgs") or []}
    own = account.get("name")
    if owner != own and owner not in teams:
        mine = ", ".join(f"{name}/..." for name in (own, *teams))
        return f"belongs to {owner}, where the account {own} cannot write. Choose among {mine}."
    if teams.get(owner) == "read":
        return f"belongs to {owner}, where the account {own} may only read. Ask there for the right to write."
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read" or not _is_granted(token, owner, repository):
        return _READ_ONLY
    return None


def _is_granted(token: Mapping[str, Any], owner: str, repository: str) -> bool:
    """Say whether a token that lists its rights lists this one; others are not judged."""
    if token.get("role") != "fineGrained" or "fineGrained" not in token:
        return True
    grants = token["fineGrained"]
    rights = list(grants.get("global") or [])
    for scope in grants.get("scoped") or []:
        if (scope.get("entity") or {}).get("name") in (owner, repository):
            rights += scope.get("permissions") or []
    return any(right in _WRITING for right in rights)


def refusal(repository: str, reason: str) -> HubError:
    """Build the error for a repository that nothing can be uploaded to."""
    return HubError(f"export.push_to_hub={repository} {reason}")


def explain(error: Exception, repository: str, *, begun: bool = False) -> HubError:
    """Say in one line why the hub took nothing or not all, and what to do.

    Args:
        error: Whatever huggingface_hub or the HTTP library raised.
        repository: Where to.
        begun: Whether the upload had begun.
    """
    chain = list(_causes(error))
    kinds = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    status = next((code for code in map(_status, chain) if code is not None), None)
    reason = _refused(kinds, status) or _unreachable(kinds, status) or f"was not uploaded: {_words(error)}."
    kept = " What has arrived is kept: the same line goes on from there." if begun else ""
    return refusal(repository, reason + kept)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        yield current
        seen.append(current)
        current = current.__cause__ or current.__context__


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(code, int):
        return code
    told = _XET_STATUS.search(str(error))
    return int(told[1]) if told else None


def _refused(kinds: set[str], status: int | None) -> str | None:
    if "HFValidationError" in kinds:
        return "is no name that the hub allows. Write it like export.push_to_hub=user/name."
    if status == 401 or "XetAuthenticationError" in kinds:
        return f"is refused: the hub does not accept the token in use. Renew it: {_LOG_IN}."
    if status == 403:
        return _READ_ONLY
    if status == 404:
        return "was not found where it was to be written. Check the name."
    return None


def _unreachable(kinds: set[str], status: int | None) -> str | None:
    from huggingface_hub import constants

    if "OfflineModeIsEnabled" in kinds:
        switch = next((name for name in _OFFLINE if os.environ.get(name)), _OFFLINE[0])
        return f"cannot be uploaded to, since {switch} forbids asking the hub. Unset it, or add {_NO_UPLOAD}."
    if status == 429 or (status is not None and status >= 500):
        return f"cannot be uploaded to now: the hub answers with error {status}. Try again later."
    if status is None and kinds & {"TransportError", "TimeoutError", "ConnectionError", "TimeoutException"}:
        return f"cannot be uploaded to: the hub ({constants.ENDPOINT}) does not answer. Check the network."
    return None


def _words(error: Exception) -> str:
    from huggingface_hub import get_token

    told = " ".join(f"{type(error).__name__} {error}".split())[:300].rstrip(".")
    token = get_token()
    return told.replace(token, "<token>") if token else told
