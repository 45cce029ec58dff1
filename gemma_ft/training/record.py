"""What training leaves for the export to check: which files it wrote, on which base, held how."""

from itertools import islice
from typing import TYPE_CHECKING

from gemma_ft.config.schema import RunConfig
from gemma_ft.runs import RunFolder, write_json

if TYPE_CHECKING:
    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.modeling.checkpoint import Checkpoint
    from gemma_ft.modeling.precision import Precision

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
    """Write trained.json beside what was trained."""
    from gemma_ft.exporting.merging.fingerprint import base_fingerprint, trained_files
    from gemma_ft.modeling.checkpoint import fetch_weights
    from gemma_ft.modeling.precision import TORCH_NAMES

    write_json(
        run.trained_record,
        {
            "base_fingerprint": base_fingerprint(fetch_weights(checkpoint)),
            "files": trained_files(run.trained),
            "quantization": config.quantization.method.value,
            "double_quant": config.quantization.double_quant,
            "dtype": TORCH_NAMES[precision.dtype],
        },
    )
