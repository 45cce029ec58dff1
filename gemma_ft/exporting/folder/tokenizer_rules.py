"""The loaders' rules about the tokenizer's files.

A rule yields what a loader cannot do with the model, as with its base, and raises what would be refused.
"""

import filecmp
import re
from collections.abc import Iterator

from gemma_ft.exporting.folder.tokenizer_files import (
    TEMPLATE_FILE,
    has_chat_template,
    special_tokens,
    tokenizer_files,
)
from gemma_ft.exporting.folder.turn_tokens import rewritten_files
from gemma_ft.exporting.folder.written import Written
from gemma_ft.exporting.merging.tensor_files import read_json

_SETTINGS = "tokenizer_config.json"
_VOCABULARY_ID = re.compile(rb'(?<!\\)":\s*(\d+)')


def files_are_the_bases(written: Written) -> Iterator[str]:
    """Any rewriting of a tokenizer can change how a text is cut."""
    changed = rewritten_files(written.base)
    for name in tokenizer_files(written.base):
        copy = written.folder / name
        if not copy.is_file():
            raise written.refusal("every loader", f"the base's {name} is not in it", "Export again.")
        same = copy.read_bytes() == changed[name].encode() if name in changed else None
        if same is None:
            same = filecmp.cmp(written.base / name, copy, shallow=False)
        if not same:
            raise written.refusal(
                "users of the base's tokenizer", f"{name} differs from the base's", "Export again."
            )
    yield from ()


def settings_are_spelled_for_old_readers(written: Written) -> Iterator[str]:
    """Transformers before 5 cannot read a list as extra_special_tokens, and knows no TokenizersBackend."""
    settings = _settings(written)
    if isinstance(settings.get("extra_special_tokens"), list):
        raise written.refusal("transformers before 5", f"{_SETTINGS} has a list as extra_special_tokens")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        raise written.refusal(
            "transformers before 5", f"{_SETTINGS} has the tokenizer_class TokenizersBackend"
        )
    yield from ()


def every_token_has_a_row(written: Written) -> Iterator[str]:
    """An id beyond the embedding fails in the middle of a text; llama.cpp's converter leaves such out."""
    size, largest = int(written.config.get("vocab_size", 0)), _largest_id(written)
    if largest >= size:
        why = f"its vocabulary goes up to id {largest}, but config.json has vocab_size {size}"
        raise written.refusal("vLLM and llama.cpp's converter", why)
    beyond = {token: number for token, number in special_tokens(written.folder).items() if number >= size}
    for token, number in beyond.items():
        yield f"{token} has id {number}, beyond vocab_size {size}, as in the base: no text may hold it."


def _largest_id(written: Written) -> int:
    """Find the largest id of the vocabulary alone, without the added tokens."""
    path = written.folder / "tokenizer.json"
    if not path.is_file():
        return -1
    text = path.read_bytes()
    start = max(text.find(b'"vocab"'), 0)
    end = text.find(b'"merges"', start)
    found = _VOCABULARY_ID.finditer(text, start, len(text) if end < 0 else end)
    return max((int(match[1]) for match in found), default=-1)


def chat_template_is_there(written: Written) -> Iterator[str]:
    """Without a template, a chat is refused; the file of its own came with transformers 4.50."""
    if not has_chat_template(written.folder):
        raise written.refusal("transformers and vLLM", "it has no chat template", "Export again.")
    if not _settings(written).get("chat_template") and (written.folder / TEMPLATE_FILE).is_file():
        yield f"its chat template is in {TEMPLATE_FILE}, which transformers before 4.50 does not read."


def sentencepiece_model_is_there(written: Written) -> Iterator[str]:
    """The converter of llama.cpp reads the vocabulary there; Ollama takes any other for a byte-level one."""
    if not (written.folder / "tokenizer.model").is_file():
        yield (
            "llama.cpp's converter and Ollama need tokenizer.model, which the base does not have: "
            "use export.formats=[gguf_bf16] for them."
        )


def _settings(written: Written) -> dict[str, object]:
    path = written.folder / _SETTINGS
    return read_json(path) if path.is_file() else {}


TOKENIZER_RULES = (
    files_are_the_bases,
    settings_are_spelled_for_old_readers,
    every_token_has_a_row,
    chat_template_is_there,
    sentencepiece_model_is_there,
)
