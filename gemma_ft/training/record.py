"""What training leaves for the export to check: which files it wrote, on which base, held how."""

import logging
from itertools import islice
from typing import TYPE_CHECKING

from gemma_ft.config.export import ExportMethod
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import RunError
from gemma_ft.runs import RunFolder, read_json, write_json

if TYPE_CHECKING:
    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.modeling.checkpoint import Checkpoint
    from gemma_ft.modeling.precision import Precision

logger = logging.getLogger("gemma_ft")

_LOOKED_AT = 1000  # rows, of which the certificate's few are chosen


def record_rows(run: RunFolder, data: "PreparedData") -> None:
    """Keep a few rows for the certificate: held-out ones, or where there are none, of the training."""
    from gemma_ft.exporting.certificate.rows import Source, choose_rows, write_rows

    source: Source = "training" if data.held_out_rows is None else "held_out"
    rows = data.rows if data.held_out_rows is None else data.held_out_rows
    write_rows(run.certificate_rows, choose_rows(islice(rows, _LOOKED_AT)), source)


def record_trained(
    run: RunFolder, config: RunConfig, checkpoint: "Checkpoint", precision: "Precision"
) -> None:
    """Write trained.json beside what was trained, once its base is known to be the one it began with.

    Raises:
        RunError: The base's weights were replaced while it was trained on.
    """
    from gemma_ft.exporting.merging.fingerprint import base_fingerprint, trained_files
    from gemma_ft.modeling.checkpoint import fetch_weights
    from gemma_ft.modeling.precision import TORCH_NAMES

    fingerprint = base_fingerprint(fetch_weights(checkpoint))
    began_with = read_json(run.data).get("start")
    if not isinstance(began_with, dict) or began_with.get("fingerprint") != fingerprint:
        raise RunError(
            f"model.path={checkpoint.path} holds other weights than {run.path} began training with. "
            "Restore them: the same line again ends the run. Or start anew with --overwrite."
        )
    if run.merged.is_dir() and config.export.method is not ExportMethod.merged:
        logger.warning(
            "%s is of an earlier training. Make it anew with: export %s, or remove it.", run.merged, run.path
        )
    write_json(
        run.trained_record,
        {
            "base_fingerprint": fingerprint,
            "files": trained_files(run.trained),
            "quantization": config.quantization.method.value,
            "double_quant": config.quantization.double_quant,
            "dtype": TORCH_NAMES[precision.dtype],
        },
    )
