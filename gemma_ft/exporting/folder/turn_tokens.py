"""The turn tokens of a base whose files have them in the vocabulary only, as Gemma 1's bases do.

A text's `<start_of_turn>` is then no token of its own, and whoever loads the exported folder would feed the
model other ids than it was trained on. Nothing but the two lists of special tokens is changed, and for
`rewritten_files` what transformers 5 spells in a way that earlier ones cannot read.
"""

import json
from pathlib import Path
from typing import Any

from gemma_ft.exporting.folder.tokenizer_files import find_added_tokens, turn_ids
from gemma_ft.exporting.merging.tensor_files import read_json
from gemma_ft.families import END_OF_TURN, START_OF_TURN

_TURNS = (START_OF_TURN, END_OF_TURN)
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_VOCABULARY, _SETTINGS = "tokenizer.json", "tokenizer_config.json"


def rewritten_files(base: Path) -> dict[str, str]:
    """Build the tokenizer files that no reader of an export could use as the base has them, by name.

    Args:
        base: The base's folder.
    """
    changed = register_turn_tokens(base)
    if not (base / _SETTINGS).is_file():
        return changed
    settings = json.loads(changed[_SETTINGS]) if _SETTINGS in changed else read_json(base / _SETTINGS)
    if (spelled := _in_old_words(settings)) != settings:
        changed[_SETTINGS] = _json(spelled)
    return changed


def register_turn_tokens(base: Path) -> dict[str, str]:
    """Build the tokenizer files of a base that have to list the turn tokens, by name; most bases need none.

    Args:
        base: The base's folder.
    """
    if not (base / _VOCABULARY).is_file():
        return {}
    text = (base / _VOCABULARY).read_bytes()
    ids = turn_ids(text)
    settings = read_json(base / _SETTINGS) if (base / _SETTINGS).is_file() else {}
    changed = {}
    if listed := _with_turns_listed(text, ids):
        changed[_VOCABULARY] = listed.decode("utf-8")
    if _lacks_turns(settings) and ids:
        changed[_SETTINGS] = _json(_with_turns_named(settings, ids))
    return changed


def _with_turns_listed(text: bytes, ids: dict[str, int]) -> bytes | None:
    """Build the vocabulary's file with the turn tokens among the added ones, or None where they are there."""
    found = find_added_tokens(text)
    if found is None:
        return None
    tokens, start, end = found
    special = {token["content"] for token in tokens if token.get("special")}
    missing = [token for token in _TURNS if token in ids and token not in special]
    if not missing:
        return None
    kept = [token for token in tokens if token["content"] not in missing]
    added = [{"id": ids[token], "content": token, **_FLAGS} for token in missing]
    listed = sorted([*kept, *added], key=lambda token: int(token["id"]))
    return b"".join((text[:start], json.dumps(listed, indent=2, ensure_ascii=False).encode(), text[end:]))


def _lacks_turns(settings: dict[str, Any]) -> bool:
    """Say whether the settings list special tokens, which then count alone, without the turns'."""
    if "added_tokens_decoder" not in settings:
        return False
    listed = {token["content"] for token in settings["added_tokens_decoder"].values() if token.get("special")}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(settings.get(key), list):
            listed |= {token["content"] if isinstance(token, dict) else token for token in settings[key]}
    return not listed.issuperset(_TURNS)


def _with_turns_named(settings: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    decoder = {int(number): token for number, token in settings["added_tokens_decoder"].items()}
    decoder |= {number: {"content": token, **_FLAGS} for token, number in ids.items()}
    further = [token for token in settings.get("additional_special_tokens") or [] if token not in _TURNS]
    return settings | {
        "added_tokens_decoder": {str(number): decoder[number] for number in sorted(decoder)},
        "additional_special_tokens": [*further, *_TURNS],
    }


def _in_old_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Spell what transformers 5 wrote so that transformers 4 reads it too; it reads the old words itself."""
    made = dict(settings)
    if isinstance(made.get("extra_special_tokens"), list):
        listed = made.pop("extra_special_tokens")
        known = made.get("additional_special_tokens") or []
        made["additional_special_tokens"] = [*known, *(token for token in listed if token not in known)]
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    return made


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
