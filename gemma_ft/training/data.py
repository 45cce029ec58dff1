"""The data stage of a run: rows prepared, checked against an earlier start and written down."""

import logging
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import RunError
from gemma_ft.runs import RunFolder, read_json, write_json
from gemma_ft.training.layout import Layout
from gemma_ft.training.record import record_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.modeling.checkpoint import Checkpoint

logger = logging.getLogger("gemma_ft")


def prepare_rows(
    config: RunConfig,
    run: RunFolder,
    layout: Layout,
    checkpoint: "Checkpoint",
    tokenizer: "PreTrainedTokenizerFast",
) -> "PreparedData":
    """Prepare the rows of a run and write down what they are.

    Raises:
        GemmaFTError: A row cannot be used, or the rows are not those that the run began with.
    """
    from gemma_ft.data.prepare import prepare_data
    from gemma_ft.data.summary import data_lines

    data = prepare_data(
        config.dataset,
        tokenizer=tokenizer,
        max_length=config.trainer.max_length,
        seed=config.seed,
        packing=config.trainer.packing,
    )
    if run.steps():
        _check_same_data(run, data.facts)
    if layout.writes:
        base = {"path": checkpoint.path, "revision": checkpoint.revision, "family": checkpoint.family.name}
        write_json(run.data, {**data.facts, "model": base})
        data.write_dropped(run.dropped)
        record_rows(run, data)
    for line in data_lines(config.dataset, data.facts):
        logger.info("%s", line)
    return data


def _check_same_data(run: RunFolder, facts: dict[str, Any]) -> None:
    """Refuse to go on with other rows than the run began with: their files may have changed meanwhile."""
    before = read_json(run.data) if run.data.is_file() else {}
    names = {"data_sha256": "rows", "tokenizer_sha256": "tokenizer", "tokens": "tokens"}
    changed = [name for key, name in names.items() if before.get(key, facts[key]) != facts[key]]
    if changed:
        raise RunError(
            f"output_dir={run.path} holds a run whose {' and '.join(changed)} have changed since it began. "
            "Restore them, or start anew with --overwrite."
        )
