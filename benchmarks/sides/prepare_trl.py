"""Prepare rows as TRL does: `python prepare_trl.py DATA TOKENIZER MAX_LENGTH MODEL [PROCESSES]`.

For the Python of an environment that has TRL; nothing of gemma_ft is imported. `trl sft` prepares rows only
on its way into training, so the part of the trainer that prepares is called by itself, with the arguments
that the trainer gives it. Prints `ready` when imports are done and the trainer is built, `done` when the rows
are packed, then what was measured. Reading the file is timed, building the trainer is not.
"""

import json
import sys
import time
from typing import Any

import datasets
import pyarrow.compute as pc
from clock import Clock
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import gemma_chat_template


def preparation(first_row: datasets.Dataset, tokenizer: Any, arguments: SFTConfig, model_folder: str) -> Any:
    """Build a trainer, and return how it prepares: the method and the arguments behind the rows."""
    parts: list[Any] = []

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
            parts[:] = [super()._prepare_dataset, args, kwargs]
            return rows

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    Trainer(model=model, args=arguments, train_dataset=first_row, processing_class=tokenizer)
    return parts


def count(packed: Any) -> dict[str, int]:
    """Count what was prepared."""
    table = packed.data
    learned = pc.not_equal(pc.list_flatten(table["labels"]), -100)
    return {
        "rows": len(pc.list_flatten(table["seq_lengths"])),
        "tokens": len(learned),
        "learned_tokens": pc.sum(learned).as_py(),
        "sequences": len(packed),
    }


def main(
    data: str, tokenizer_folder: str, max_length: str, model_folder: str, processes: str | None = None
) -> None:
    """Prepare, and print the counts."""
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = gemma_chat_template  # the one whose masks TRL knows how to make
    arguments = SFTConfig(
        output_dir=f"{data}.trl",
        max_length=int(max_length),
        packing=True,
        packing_strategy="bfd",
        assistant_only_loss=True,
        dataset_num_proc=None if processes is None else int(processes),
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    with open(data, encoding="utf-8") as file:
        first_row = datasets.Dataset.from_list([json.loads(file.readline())])
    method, args, kwargs = preparation(first_row, tokenizer, arguments, model_folder)
    clock, start = Clock(), time.perf_counter()
    rows = datasets.load_dataset("json", data_files=data, split="train")
    read = time.perf_counter() - start
    packed = method(rows, *args, **kwargs)
    clock.stop()(reading_seconds=round(read, 2), **count(packed))


if __name__ == "__main__":
    main(*sys.argv[1:])
