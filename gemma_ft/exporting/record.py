"""What training wrote down of itself, against what is to be exported."""

import logging
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import AdapterMethod, QuantizationMethod, RunConfig
from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.fingerprint import check_files, check_trained
from gemma_ft.exporting.merging.recorded_base import check_recorded_base
from gemma_ft.runs import RunFolder, read_json

if TYPE_CHECKING:
    from gemma_ft.modeling.checkpoint import Checkpoint

logger = logging.getLogger("gemma_ft")

_KINDS = {"base_fingerprint": str, "files": dict, "quantization": str, "double_quant": bool, "dtype": str}
_DTYPES = ("bfloat16", "float16", "float32")


def read_record(run: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """Read trained.json; None, with a warning, where there is none.

    Raises:
        ExportError: It is no such record, or contradicts config.yaml.
    """
    if not run.trained_record.is_file():
        logger.warning(
            "%s is missing: nothing tells whether base and trained weights are those of the training.",
            run.trained_record,
        )
        return None
    record = read_json(run.trained_record)
    for key, kind in _KINDS.items():
        if not isinstance(record.get(key), kind) or (key == "dtype" and record[key] not in _DTYPES):
            raise ExportError(
                f"{run.trained_record} is no record of a training: {key} is {record.get(key)!r}. Restore it."
            )
    _check_settings(run, config, record)
    return record


def check_adapter(run: RunFolder, config: RunConfig, checkpoint: "Checkpoint") -> None:
    """Check that a run's adapter is the one that was trained, and its base the one it was trained on.

    The weights of a base on the hub are not asked for: there its name and commit tell.

    Raises:
        ExportError: One of them is another.
    """
    check_recorded_base(run.adapter, hub_id=checkpoint.hub_id, revision=checkpoint.revision)
    record = read_record(run, config)
    if record is None:
        return
    if checkpoint.hub_id is None:
        check_trained(run.adapter, checkpoint.folder, record)
    else:
        check_files(run.adapter, record)


def _check_settings(run: RunFolder, config: RunConfig, record: dict[str, Any]) -> None:
    """Check that the settings, which say what to merge onto, are still those of the training."""
    whole = config.adapter.method is AdapterMethod.none
    if whole != (run.trained == run.model):
        raise ExportError(
            f"{run.config} says adapter={config.adapter.method}, but {run.trained} was trained. "
            "Put the config.yaml of the training back."
        )
    said: dict[str, str | bool] = {"quantization": config.quantization.method.value}
    if config.quantization.method is QuantizationMethod.nf4:
        said["double_quant"] = config.quantization.double_quant
    for key, value in said.items():
        if value != record[key]:
            raise ExportError(
                f"{run.config} says {key}={value}, but it was {record[key]} when {run.trained} was trained. "
                "Put the config.yaml of the training back."
            )
