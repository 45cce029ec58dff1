"""What an adapter's settings say of the base it was trained on, against the base it is to be merged with."""

import re
from pathlib import Path
from typing import Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter import ADAPTER_CONFIG
from gemma_ft.exporting.merging.tensor_files import read_json

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_recorded_base(folder: Path, *, hub_id: str | None, revision: str | None) -> None:
    """Check that an adapter names the base it is about to be merged with.

    Names decide only between two hub repositories, and revisions only between two commits of one. A local
    folder has no name that means the same elsewhere, and a branch moves: there the fingerprint decides.

    Args:
        folder: The adapter's folder; one without adapter_config.json records nothing.
        hub_id: Repository of the base; None for a local folder.
        revision: Its commit.

    Raises:
        ExportError: The adapter names another repository, or another commit of this one.
    """
    if hub_id is None or not (folder / ADAPTER_CONFIG).is_file():
        return
    values = read_json(folder / ADAPTER_CONFIG)
    recorded = values.get("base_model_name_or_path")
    if not isinstance(recorded, str) or not _is_hub_id(recorded):
        return
    if recorded.lower() != hub_id.lower():
        raise ExportError(
            f"{folder} was trained on {recorded}, but the base here is {hub_id}. "
            f"Export with model.path={recorded}."
        )
    commit = values.get("revision")
    if _is_commit(commit) and _is_commit(revision) and commit != revision:
        raise ExportError(
            f"{folder} was trained on revision {commit} of {hub_id}, but the base here is revision "
            f"{revision}. Download that revision, and export with model.path= its folder."
        )


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None
