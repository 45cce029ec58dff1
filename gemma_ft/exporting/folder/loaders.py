"""What the loaders ask of a checkpoint folder, each rule a check on the folder as it lies on disk.

The rules were read in transformers 4.45, 4.50 and 5.23, vLLM 0.11, the llama.cpp that llama-cpp-python 0.3.36
brings, and Ollama's `convert` package. A loader that cannot read a base at all, such as llama.cpp's converter
one without tokenizer.model, cannot read what is made of it either: that is told, and no error.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from gemma_ft.exporting.folder.config_rules import CONFIG_RULES
from gemma_ft.exporting.folder.tokenizer_rules import TOKENIZER_RULES
from gemma_ft.exporting.folder.weight_rules import WEIGHT_RULES
from gemma_ft.exporting.folder.written import Written, read_written
from gemma_ft.families import Family

_RULES: tuple[Callable[[Written], Iterator[str]], ...] = (*WEIGHT_RULES, *CONFIG_RULES, *TOKENIZER_RULES)


def check_loaders(folder: Path, base: Path, family: Family) -> list[str]:
    """Check that transformers, vLLM, llama.cpp's converter and Ollama would load a written folder.

    Args:
        folder: The folder, whole but perhaps not yet under its name.
        base: The base's folder.
        family: The base's family.

    Returns:
        What a loader cannot do with this model, as with its base, in short sentences.

    Raises:
        ExportError: A loader would refuse or misread the folder; the message names it and says why.
    """
    written = read_written(folder, base, family)
    return [note for rule in _RULES for note in rule(written)]
