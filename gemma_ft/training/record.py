"""What training leaves for the export to check: which files it wrote, on which base, held how."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import RunConfig
from gemma_ft.runs import RunFolder, write_json

if TYPE_CHECKING:
    from gemma_ft.data.prepare import PreparedData
    from gemma_ft.modeling.checkpoint import Checkpoint
    from gemma_ft.modeling.precision import Precision

_LOOKED_AT = 1000  # rows, of which the certificate's few are chosen


def record_rows(run: RunFolder, data: "PreparedData") -> None:
    """Keep a few rows for the certificate: held-out ones, or where there are none, of the training."""
    from gemma_ft.exporting.certificate.rows import choose_rows, write_rows

    held_out = data.held_out_rows
    if held_out is None:
        write_rows(run.certificate_rows, choose_rows(_in_turn(data.rows)), source="training")
    else:
        write_rows(run.certificate_rows, choose_rows(_in_turn(held_out)), source="held_out")


def _in_turn(rows: Any) -> Iterator[Any]:
    return islice(rows, _LOOKED_AT)


def record_trained(
    run: RunFolder, config: RunConfig, checkpoint: "Checkpoint", precision: "Precision"
) -> None:
    """Write trained.json beside what was trained."""
    from gemma_ft.exporting.merging.fingerprint import base_fingerprint, trained_files
    from gemma_ft.modeling.checkpoint import fetch_weights

    write_json(
        run.trained_record,
        {
            "base_fingerprint": base_fingerprint(fetch_weights(checkpoint)),
            "files": trained_files(run.trained),
            "quantization": config.quantization.method.value,
            "double_quant": config.quantization.double_quant,
            "dtype": str(precision.torch_dtype).removeprefix("torch."),
        },
    )
