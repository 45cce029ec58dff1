"""Merge as PEFT does: `python merge_peft.py BASE ADAPTER COPY`.

For the Python of an environment that has PEFT; nothing of gemma_ft is imported. Prints `ready` when imports
are done and the clock starts, `done` when the merged model is saved, then what was measured.
"""

import sys

import torch
from clock import Clock, peak_mib
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, copy: str) -> None:
    """Load, merge in place and save."""
    clock = Clock()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(copy)
    clock.stop()(peak_mib=peak_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])
