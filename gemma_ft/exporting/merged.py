"""`export=merged`: from a run folder to one whole checkpoint with its certificate."""

import gc
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.export import CertificateMethod, ExportBase
from gemma_ft.config.schema import AdapterMethod, Dtype, QuantizationMethod, RunConfig
from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.certify import Certificate, certify
from gemma_ft.exporting.certificate.rows import CertificateRows, read_rows
from gemma_ft.exporting.folder.checkpoint import export_checkpoint
from gemma_ft.exporting.folder.contract import check_contract
from gemma_ft.exporting.heap import trim_heap
from gemma_ft.exporting.merging.fingerprint import check_trained
from gemma_ft.exporting.merging.merge import MergePlan
from gemma_ft.exporting.merging.recorded_base import check_recorded_base
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.origin import describe_origin
from gemma_ft.exporting.record import read_record
from gemma_ft.modeling.precision import TORCH_NAMES
from gemma_ft.runs import RunFolder, read_json, write_text

if TYPE_CHECKING:
    from gemma_ft.modeling.checkpoint import Checkpoint

logger = logging.getLogger("gemma_ft")


def export_merged(run: RunFolder, config: RunConfig, checkpoint: "Checkpoint") -> None:
    """Merge what a run has trained into its base, and prove it unless that is switched off.

    Raises:
        GemmaFTError: It cannot be exported, or is not the model that was trained.
    """
    from gemma_ft.modeling.checkpoint import fetch_weights

    base = fetch_weights(checkpoint)
    record = read_record(run, config)
    certifies = config.export.certificate is not CertificateMethod.none
    rows = _rows(run) if certifies else None  # what cannot be read is told before the merge, not after it
    _check_inputs(run, checkpoint, base, record, certifies)
    held = _held(run, config, record)
    report, certificate = export_checkpoint(
        base=base,
        trained=run.trained,
        destination=run.merged,
        family=checkpoint.family,
        origin=describe_origin(run, config, checkpoint),
        shard_bytes=config.export.shard_bytes(),
        storage=None if config.export.base is ExportBase.original else held,
        check_tokens=partial(_check_tokens, run, checkpoint),
        prove=None if rows is None else partial(_prove, rows, held, record is not None),
        outdated=run.certificate,
    )
    if certificate is not None:
        write_text(run.certificate, certificate)
    logger.info(
        "exported %s: %d tensors, %d of them changed, in %d file(s)%s",
        run.merged,
        report.tensors,
        report.changed,
        report.shards,
        "" if certifies else "; not certified",
    )


def _rows(run: RunFolder) -> CertificateRows:
    if not run.certificate_rows.is_file():
        raise ExportError(
            f"{run.certificate_rows} is missing, and export.certificate=full needs its rows. "
            "Restore it, or export unproven with export.certificate=none."
        )
    return read_rows(run.certificate_rows)


def _check_inputs(
    run: RunFolder, checkpoint: "Checkpoint", base: Path, record: Mapping[str, Any] | None, certifies: bool
) -> None:
    """Check that adapter and base are those of the training, as far as it has written down."""
    if run.trained == run.adapter:
        check_recorded_base(run.adapter, hub_id=checkpoint.hub_id, revision=checkpoint.revision)
    if record is None:
        return
    if not certifies:  # a changed adapter may be exported, unproven; never another base
        record = {**record, "files": {}}
    check_trained(run.trained, base, record)


def _held(run: RunFolder, config: RunConfig, record: Mapping[str, Any] | None) -> TrainedStorage | None:
    """Say how the frozen base was held while training; None for weights as they are."""
    method = config.quantization.method
    if config.adapter.method is AdapterMethod.none or method is QuantizationMethod.none:
        return None
    dtype = record["dtype"] if record else TORCH_NAMES[Dtype(read_json(run.environment)["dtype"])]
    return TrainedStorage(method=method, double_quant=config.quantization.double_quant, dtype=dtype)


def _prove(
    rows: CertificateRows, held: TrainedStorage | None, recorded: bool, plan: MergePlan, folder: Path
) -> Certificate:
    made = certify(plan, folder, rows, trained_storage=held)
    return replace(made, content={**made.content, "inputs_checked_against_trained_json": recorded})


def _check_tokens(run: RunFolder, checkpoint: "Checkpoint", folder: Path) -> None:
    """Check the token contract on the written folder, and leave no tokenizer's memory to the merge."""
    check_contract(folder, run.merged, checkpoint.family, _trained_sample_sha256(run, checkpoint))
    gc.collect()
    trim_heap()


def _trained_sample_sha256(run: RunFolder, checkpoint: "Checkpoint") -> str:
    """Return what `sample_sha256` gave when the run began, or without such a record, what it gives now."""
    from gemma_ft.data.tokens.contract import sample_sha256
    from gemma_ft.modeling.checkpoint import load_tokenizer

    facts: dict[str, Any] = read_json(run.data) if run.data.is_file() else {}
    recorded = (facts.get("contract") or {}).get("sample_sha256")
    return str(recorded or sample_sha256(load_tokenizer(checkpoint)))
