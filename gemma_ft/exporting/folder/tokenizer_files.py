"""The files of a checkpoint's tokenizer, and the ids of its special tokens."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemma_ft import families
from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.tensor_files import read_json

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    TEMPLATE_FILE,
)
_ROLES = ("eos", "bos", "pad")


def tokenizer_files(base: Path) -> list[str]:
    """List the files of a checkpoint's tokenizer.

    Raises:
        ExportError: It has none.
    """
    names = [name for name in TOKENIZER_FILES if (base / name).is_file()]
    if not set(names) & set(_TOKENIZERS):
        raise ExportError(f"{base} has neither tokenizer.json nor tokenizer.model. Use a whole checkpoint.")
    return names


def has_chat_template(folder: Path) -> bool:
    """Say whether a tokenizer folder carries a chat template of its own."""
    if (folder / TEMPLATE_FILE).is_file() or (folder / "chat_template.json").is_file():
        return True
    return bool(_optional(folder / "tokenizer_config.json").get("chat_template"))


def special_token_ids(folder: Path) -> dict[str, int]:
    """Find the ids of eos, end_of_turn, bos and pad in a tokenizer's files, as far as it has them.

    Where eos is another token than <eos>, as for Gemma 3, <eos> is found as end_of_text, since texts end so.
    """
    words = _optional(folder / "special_tokens_map.json") | _optional(folder / "tokenizer_config.json")
    contents = {role: _content(words.get(f"{role}_token")) or f"<{role}>" for role in _ROLES}
    contents["end_of_turn"] = families.END_OF_TURN
    if contents["eos"] != families.EOS:
        contents["end_of_text"] = families.EOS
    ids: dict[str, int] = {}
    for token, number in _added_tokens(folder, words):
        ids.setdefault(token, number)
        if ids.keys() >= set(contents.values()):
            break
    return {role: ids[content] for role, content in contents.items() if content in ids}


def special_tokens(folder: Path) -> dict[str, int]:
    """List the tokens that a tokenizer's files add to its vocabulary or name apart, with their ids."""
    words = _optional(folder / "special_tokens_map.json") | _optional(folder / "tokenizer_config.json")
    return dict(_added_tokens(folder, words))


def _added_tokens(folder: Path, words: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield added tokens from the small files first; tokenizer.json has tens of megabytes."""
    for number, token in (words.get("added_tokens_decoder") or {}).items():
        yield str(token["content"]), int(number)
    yield from _optional(folder / "added_tokens.json").items()
    if (folder / "tokenizer.json").is_file():
        text = (folder / "tokenizer.json").read_bytes()
        if found := find_added_tokens(text):
            yield from ((token["content"], token["id"]) for token in found[0])
        yield from turn_ids(text).items()


def find_added_tokens(text: bytes) -> tuple[list[dict[str, Any]], int, int] | None:
    """Read the list of added tokens in the bytes of a tokenizer.json, and where it begins and ends.

    Nothing else is decoded, which spares hundreds of megabytes.
    """
    key = text.find(b'"added_tokens"')
    if key < 0:
        return None
    start = text.index(b"[", key)
    limit = text.find(b'"vocab"', start)  # the large part, which follows
    piece = text[start : limit if limit >= 0 else len(text)].decode("utf-8")
    tokens, end = json.JSONDecoder().raw_decode(piece)
    return tokens, start, start + len(piece[:end].encode("utf-8"))


def turn_ids(vocabulary: bytes) -> dict[str, int]:
    """Read the ids of the turn tokens off the bytes of a tokenizer.json: of both, or of none."""
    tokens = (families.START_OF_TURN, families.END_OF_TURN)
    found = [re.search(rf'"{token}"\s*:\s*(\d+)'.encode(), vocabulary) for token in tokens]
    return {token: int(match[1]) for token, match in zip(tokens, found, strict=True) if match and all(found)}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
