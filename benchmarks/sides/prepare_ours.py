"""Prepare rows as gemma_ft does: `python prepare_ours.py DATA TOKENIZER MAX_LENGTH`.

Prints `ready` when imports are done and the clock starts, `done` when it stops, then what was measured.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from clock import Clock


def main(data: str, tokenizer_folder: str, max_length: int) -> None:
    """Prepare, and print the counts."""
    from transformers import AutoTokenizer

    from gemma_ft.config.dataset import DatasetConfig
    from gemma_ft.data.prepare import prepare_data
    from gemma_ft.families import load_chat_template

    import_module("trl.data_utils")  # packing needs it, and TRL's own clock starts after its imports too
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = tokenizer.chat_template or load_chat_template()
    dataset = DatasetConfig(path=str(Path(data).resolve()), eval_fraction=0)
    clock = Clock()
    prepared = prepare_data(dataset, tokenizer=tokenizer, max_length=max_length, seed=1, packing=True)
    say = clock.stop()
    facts = prepared.facts
    say(
        rows=facts["rows_train"],
        tokens=facts["tokens"],
        learned_tokens=facts["trained_tokens"],
        sequences=prepared.train.num_rows,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
