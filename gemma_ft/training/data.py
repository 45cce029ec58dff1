"""The data stage of a run: rows and base, checked against an earlier start and written down."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import RunError
from gemma_ft.modeling.imports import seldom_collected
from gemma_ft.runs import RunFolder, read_json, write_json
from gemma_ft.training.layout import Layout
from gemma_ft.training.record import record_rows
from gemma_ft.training.together import check_same_folder, wait_for_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.modeling.checkpoint import Checkpoint

logger = logging.getLogger("gemma_ft")

_ROWS = {"data_sha256": "rows", "template_sha256": "chat template", "tokenizer_sha256": "tokenizer"}
_START = {
    "revision": "commit",
    "config_sha256": "config.json",
    "fingerprint": "weights",
    "adapter": "starting adapter",
}


@seldom_collected()
def prepare_rows(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: "Checkpoint",
    tokenizer: "PreTrainedTokenizerFast",
) -> "PreparedData":
    """Prepare the rows of a run, and write down what they and its base are.

    No process group has been formed yet, since it would wait for other processes only so long.

    Raises:
        GemmaFTError: A row cannot be used, or rows or base are not those that the run began with.
    """
    from gemma_ft.data.prepare import prepare_data
    from gemma_ft.data.summary import data_lines
    from gemma_ft.modeling.checkpoint import fetch_weights

    check_same_folder(run)
    data = prepare_data(
        config.dataset,
        tokenizer=tokenizer,
        max_length=config.trainer.max_length,
        seed=config.seed,
        packing=config.trainer.packing,
    )
    goes_on = bool(run.steps())
    if goes_on:
        _check_same_data(run, data.facts)
    if layout.writes or goes_on:
        start = describe_start(config, checkpoint)
    else:
        fetch_weights(checkpoint)  # the others would wait for this machine's download too
    if goes_on:
        _check_same_start(run, checkpoint, start)
    if layout.writes:
        base = {"path": checkpoint.path, "revision": checkpoint.revision, "family": checkpoint.family.name}
        write_json(run.data, {**data.facts, "model": base, "start": start})
        data.write_dropped(run.dropped)
        record_rows(run, data)
    wait_for_rows(data.facts)
    for line in data_lines(config.dataset, data.facts):
        logger.info("%s", line)
    return data


def describe_start(config: RunConfig, checkpoint: "Checkpoint") -> dict[str, Any]:
    """Say which weights training starts from: the base's, and those of an adapter it goes on with.

    Raises:
        GemmaFTError: They cannot be had, or read.
    """
    from gemma_ft.exporting.merging.fingerprint import base_fingerprint, trained_files
    from gemma_ft.modeling.checkpoint import fetch_weights

    adapter = config.adapter.path
    settings = json.dumps(checkpoint.config, sort_keys=True)
    return {
        "config_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "fingerprint": base_fingerprint(fetch_weights(checkpoint)),
        "adapter": None if adapter is None else trained_files(Path(adapter).expanduser()),
    }


def _check_same_data(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other rows than the run began with: their files may have changed meanwhile."""
    before = _read_facts(run)
    changed = [name for key, name in _ROWS.items() if before.get(key) != facts[key]]
    if not changed and before.get("tokens") != facts["tokens"]:
        changed = ["tokens"]
    if changed:
        raise RunError(
            f"output_dir={run.path} holds a run whose {' and '.join(changed)} changed since it began. "
            "Restore them, or start anew with --overwrite."
        )


def _check_same_start(run: RunFolder, checkpoint: "Checkpoint", start: Mapping[str, Any]) -> None:
    """Refuse to go on with another base: what was learned on one means nothing on the other."""
    facts = _read_facts(run)
    before = {"revision": _part(facts, "model").get("revision", "not said"), **_part(facts, "start")}
    now = {"revision": checkpoint.revision, **start}
    changed = [name for key, name in _START.items() if before.get(key) != now[key]]
    if changed:
        raise RunError(
            f"output_dir={run.path} holds a run whose base changed since it began: {', '.join(changed)} "
            f"of model.path={checkpoint.path}. Restore it, or start anew with --overwrite."
        )


def _part(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = facts.get(key)
    return part if isinstance(part, dict) else {}


def _read_facts(run: RunFolder) -> dict[str, Any]:
    if not run.data.is_file():
        raise RunError(
            f"{run.data} is gone: nothing tells whether rows and base are those that the run began with. "
            "Restore it, or start anew with --overwrite."
        )
    return read_json(run.data)
