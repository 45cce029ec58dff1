"""The upload of an export: checked before the work begins, resumed after a cut, verified at its end.

The work is done by huggingface_hub's `upload_folder`. Cut and called again, it sends only what the hub lacks:
pieces of a file with hf_xet, which comes with it, and whole files without. It writes nothing into the folder.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.errors import HubError
from gemma_ft.exporting.hub_account import check_account, explain, refusal, within_deadline

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

logger = logging.getLogger("gemma_ft")

_REPLACED = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "certificate.json",
)
"""What an earlier upload of merged weights may have left, and what must not stand beside other weights."""
_SETTINGS = {True: "config.json", False: "adapter_config.json"}
"""The file by which a loader takes a repository for a whole model, and for an adapter."""
_HIDDEN = ".*"


def check_push(repository: str, *, private: bool) -> None:
    """Find out, before any work, whether an export can be uploaded.

    Args:
        repository: Where to, as user/name.
        private: Whether nobody else may see it.

    Raises:
        HubError: There is no token, it may not write there, the hub does not answer, or what is there
            is public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    check_account(api, repository)
    try:
        info = within_deadline(lambda: api.model_info(repository))
    except RepositoryNotFoundError:
        return
    except Exception as error:  # whatever it is, it is told apart in `explain`
        raise explain(error, repository) from None
    _check_visibility(repository, private=private, is_private=info.private is not False)


def _check_visibility(repository: str, *, private: bool, is_private: bool) -> None:
    if private and not is_private:
        raise refusal(
            repository,
            "is there already and public. Make it private in its settings, choose another name, or say "
            "export.private=false.",
        )
    if is_private and not private:
        logger.info("%s is there already and private; it stays so.", repository)


def push_to_hub(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to a model repository, which is made where there is none, and check what has arrived.

    Weights and certificate of an earlier upload that are no part of this one are removed from it.

    Args:
        folder: What to upload; it is only read.
        repository: Where to, as user/name.
        private: Whether a repository that is made for it is private.

    Returns:
        The address of the repository.

    Raises:
        HubError: It could not be uploaded, or something else has arrived. Cut, the same call goes on.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    check_push(repository, private=private)
    has_weights = any(folder.glob("model*.safetensors"))
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        info = api.model_info(repository)
        _check_visibility(repository, private=private, is_private=info.private is not False)
        _check_kind(repository, [file.rfilename for file in info.siblings or ()], has_weights)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Upload {folder.name}",
            ignore_patterns=[_HIDDEN],
            delete_patterns=list(_REPLACED) if has_weights else None,
        )
        _check_arrival(api, folder, repository, commit.oid)
    except HubError:
        raise
    except Exception as error:  # whatever it is, it is told apart in `explain`
        raise explain(error, repository, begun=True) from None
    return address


def _check_kind(repository: str, names: Sequence[str], is_whole: bool) -> None:
    """Keep adapter and whole model apart: transformers puts an adapter upon whatever model it lies beside."""
    if _SETTINGS[not is_whole] in names:
        held, sent = ("an adapter", "a whole model") if is_whole else ("a whole model", "an adapter")
        raise refusal(
            repository,
            f"holds {held}, and {sent} beside it would be loaded as one with it. Choose another name.",
        )


def _check_arrival(api: "HfApi", folder: Path, repository: str, commit: str) -> None:
    """Compare size and hash of each file with what the hub says it has."""
    from huggingface_hub import RepoFile

    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    found = api.get_paths_info(repository, names, revision=commit)
    remote = {file.path: file for file in found if isinstance(file, RepoFile)}
    for name in names:
        if name not in remote or not _same(folder / name, remote[name]):
            raise refusal(
                repository,
                f"has got another {name} than {folder / name}. Export again, and leave both alone meanwhile.",
            )


def _same(path: Path, remote: "RepoFile") -> bool:
    size = path.stat().st_size
    if remote.size != size:
        return False
    if remote.lfs is not None:
        return _digest(path, hashlib.sha256()) == remote.lfs.sha256
    return _digest(path, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)) == remote.blob_id


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
