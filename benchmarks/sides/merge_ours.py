"""Merge as the export does: `python merge_ours.py BASE ADAPTER COPY original|int8|nf4 SHARD_BYTES`.

Prints `ready` when imports are done and the clock starts, `done` when every byte is on the disk, then what
was measured.
"""

import sys
from pathlib import Path

from clock import Clock, peak_mib


def main(base: str, adapter: str, copy: str, held: str, shard_bytes: str) -> None:
    """Merge onto the base as it is, or as training held it."""
    import torch  # noqa: F401

    from gemma_ft.config.schema import QuantizationMethod
    from gemma_ft.exporting.merging.merge import plan_merge, write_merge
    from gemma_ft.exporting.merging.storage import TrainedStorage

    storage = None
    if held != "original":
        storage = TrainedStorage(method=QuantizationMethod(held), double_quant=True, dtype="bfloat16")
    clock = Clock()
    write_merge(plan_merge(Path(base), Path(adapter), storage), Path(copy), shard_bytes=int(shard_bytes))
    clock.stop()(peak_mib=peak_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])
