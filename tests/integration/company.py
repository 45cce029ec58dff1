"""A process of a run that does nothing but what all see to together: RUN is the folder, ROWS its data's hash.

SLOW is how long this process takes to have its rows, in s; LEARNING_RATE what it was started with; SEEN how
long it waits to see the folder of another one, in s; with FAILS it has no rows.
"""

import os
import sys
import time

from gemma_ft import stopping
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import GemmaFTError, Interrupted
from gemma_ft.runs import RunFolder
from gemma_ft.training import together as together_module
from gemma_ft.training.layout import resolve_layout
from gemma_ft.training.together import check_same_folder, together, wait_for_rows


def attend() -> None:
    """Begin, claim the folder, have rows, end."""
    config = RunConfig(output_dir=os.environ["RUN"])
    config.trainer.global_batch_size = 12
    config.trainer.learning_rate = float(os.environ.get("LEARNING_RATE", "1e-4"))
    layout, run = resolve_layout(config), RunFolder(config.output_dir)
    with stopping.listen(), together(config, layout, print):
        if layout.writes:
            run.path.mkdir(exist_ok=True)
            run.lock()
        check_same_folder(run)
        print("here", flush=True)
        time.sleep(float(os.environ.get("SLOW", "0")))
        if os.environ.get("FAILS"):
            raise OSError("no such row")
        wait_for_rows({"data_sha256": os.environ.get("ROWS", "abc"), "rows": 3})


if __name__ == "__main__":
    together_module._SEEN_SECONDS = float(os.environ.get("SEEN", "60"))
    try:
        attend()
    except (GemmaFTError, Interrupted) as error:
        print(type(error).__name__, getattr(error, "alike", None), error)
        sys.exit(1)
    print("done")
