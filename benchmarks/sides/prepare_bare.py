"""Tokenise rendered conversations, and nothing else: `python prepare_bare.py DATA TOKENIZER`.

The rate that the tokenizer itself reaches on all cores. Reading the file and writing the turns out are left
out of the clock, and no token is kept.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice

_BATCH = 1000
_ROLES = {"user": "user", "assistant": "model"}


def render(row: str) -> str:
    """Write a conversation out in Gemma's turns."""
    turns = (
        f"<start_of_turn>{_ROLES[message['role']]}\n{message['content'].strip()}<end_of_turn>\n"
        for message in json.loads(row)["messages"]
    )
    return "<bos>" + "".join(turns)


def batches(data: str) -> Iterator[list[str]]:
    """Read conversations, a thousand at a time."""
    with open(data, encoding="utf-8") as file:
        while rows := list(islice(file, _BATCH)):
            yield [render(row) for row in rows]


def main(data: str, tokenizer_folder: str) -> None:
    """Tokenise, and print the counts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json")
    seconds = busy = 0.0
    tokens = rows = 0
    print("ready", flush=True)
    for texts in batches(data):
        start, began = time.perf_counter(), sum(os.times()[:4])
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        seconds += time.perf_counter() - start
        busy += sum(os.times()[:4]) - began
        tokens += sum(len(encoding) for encoding in encodings)
        rows += len(texts)
    print("done", flush=True)
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2)}
    print(json.dumps(times | {"rows": rows, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
