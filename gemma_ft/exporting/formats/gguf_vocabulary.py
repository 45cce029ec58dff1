"""A tokenizer.json as llama.cpp's "llama" vocabulary: pieces, scores that give the merges' order, and kinds.

llama.cpp joins whichever neighbours make a piece of the highest score (src/llama-vocab.cpp,
llm_tokenizer_spm), where byte-pair merging joins the pair of the lowest rank. Both give the same tokens where

- every way to split a piece is a merge, as in vocabularies that come from SentencePiece, or
- every piece that merges make stands for itself: two neighbours that make a piece without being a merge
  would then have been tokens of that piece's own text, which is the piece alone.

A tokenizer of neither sort is refused.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.tensor_files import read_json
from gemma_ft.families import BOS, END_OF_TURN, EOS, PAD

UNKNOWN = "<unk>"

_FILE = "tokenizer.json"
_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # gguf.TokenType
_BYTES = {f"<0x{byte:02X}>": chr(byte) if byte < 128 else None for byte in range(256)}
"""The name of each byte's token, and the character that makes it needless, as the tab does for Gemma 1."""
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What each token id is, in the order of the ids, one for every row of the embedding."""

    tokens: list[str]
    scores: list[float]
    """The higher, the earlier neighbours are joined into this piece."""
    types: list[int]
    """`gguf.TokenType` as numbers."""


@dataclass(frozen=True, slots=True)
class _Merges:
    """The ranks of the merges that make each piece."""

    first: dict[str, int]
    last: dict[str, int]
    counts: dict[str, int]
    children: list[tuple[str, str]]


def build_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Read a checkpoint's tokenizer.json.

    Takes a few hundred megabytes for a vocabulary of 256 thousand pieces.

    Args:
        folder: The checkpoint's folder.
        rows: Rows of its embedding. Tokens beyond them are left out; rows without a token get a name.

    Raises:
        ExportError: The vocabulary cannot say what the tokenizer does.
    """
    content = read_json(folder / _FILE) if (folder / _FILE).is_file() else None
    fault = "there is no tokenizer.json" if content is None else _find_kind_fault(content)
    if content is not None and not fault:
        merges = _read_merges(content["model"]["merges"])
        fault = _find_order_fault(folder, content, merges)
    if content is None or fault:
        raise ExportError(
            f"{folder} has a tokenizer that GGUF cannot hold: {fault}. "
            "Leave the gguf formats out of export.formats."
        )
    return _lay_out(folder, content, merges, rows)


def _find_kind_fault(content: Mapping[str, Any]) -> str | None:
    model, before = content["model"], content.get("pre_tokenizer")
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return f"its model is {model.get('type')}, not BPE with byte fallback"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            return f"its model has {key}={model[key]}"
    if content.get("normalizer") != _REPLACE:
        return "it does more to a text than to write spaces as \\u2581"
    if before is not None and (before.get("type"), before.get("pattern")) != ("Split", {"String": " "}):
        return f"it cuts texts by {before.get('type')}"
    for byte, character in _BYTES.items():
        if byte not in model["vocab"] and character not in model["vocab"]:
            return f"it lacks the byte {byte}"
    if sorted(model["vocab"].values()) != list(range(len(model["vocab"]))):
        return "its ids have gaps"
    named = model["vocab"].keys() | {token["content"] for token in content["added_tokens"]}
    if missing := {BOS, EOS, PAD, UNKNOWN, END_OF_TURN} - named:
        return f"it lacks {min(missing)}"
    for token in content["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                return f"its token {token['content']} has {flag}"
    return None


def _read_merges(merges: Sequence[str | Sequence[str]]) -> _Merges:
    read = _Merges({}, {}, {}, [])
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        piece = left + right
        read.first.setdefault(piece, rank)
        read.last[piece] = rank
        read.counts[piece] = read.counts.get(piece, 0) + 1
        read.children.append((left, right))
    return read


def _find_order_fault(folder: Path, content: Mapping[str, Any], merges: _Merges) -> str | None:
    for piece, count in merges.counts.items():
        scattered = merges.last[piece] - merges.first[piece] >= count
        if scattered and len(set(piece)) > 1:  # a run of one character is taken from the left either way
            return f"the merges of {piece!r} have others between them"
    vocab = content["model"]["vocab"]
    for piece in vocab:
        if _count_splits(piece, vocab) != merges.counts.get(piece, 0):
            return _find_learned_fault(folder, content, merges)
    return None


def _count_splits(piece: str, vocab: Mapping[str, int]) -> int:
    return sum(piece[:i] in vocab and piece[i:] in vocab for i in range(1, len(piece)))


def _find_learned_fault(folder: Path, content: Mapping[str, Any], merges: _Merges) -> str | None:
    """Check the second sort: pieces are made of earlier ones, and each stands for itself."""
    from tokenizers import Tokenizer

    for rank, (left, right) in enumerate(merges.children):
        for part in (left, right):
            if merges.last.get(part, -1) > rank:
                return f"{left + right!r} is made of {part!r}, which a later merge makes"
    tokenizer = Tokenizer.from_file(str(folder / _FILE))
    tokenizer.encode_special_tokens = True  # as text, which llama.cpp joins pieces of
    vocab = content["model"]["vocab"]
    pieces = list(vocab)
    for piece, encoding in zip(pieces, tokenizer.encode_batch(pieces, add_special_tokens=False), strict=True):
        if piece in merges.counts and encoding.ids != [vocab[piece]]:
            return f"{piece!r} is no token of its own text"
        if piece not in merges.counts and len(encoding.ids) == 2 and _count_splits(piece, vocab):
            return f"{piece!r} would be made of two tokens, which no merge does"
    return None


def _lay_out(folder: Path, content: Mapping[str, Any], merges: _Merges, rows: int) -> Vocabulary:
    unmade = -float(len(merges.children))
    tokens = [f"[PAD{number}]" for number in range(rows)]
    scores, types = [unmade] * rows, [_UNUSED] * rows
    added = {token["id"]: token for token in content["added_tokens"]}
    named = {**content["model"]["vocab"], **{token["content"]: number for number, token in added.items()}}
    for token, number in named.items():
        if number < rows:
            tokens[number] = token
            scores[number] = -float(merges.first[token]) if token in merges.first else unmade
            types[number] = _type_of(token, added.get(number), merges)
    if len(set(tokens)) < rows:
        twice = min(token for token, count in Counter(tokens).items() if count > 1)
        raise ExportError(f"{folder} has the token {twice!r} twice in what GGUF would hold. Rename it.")
    return Vocabulary(tokens, scores, types)


def _type_of(token: str, added: Mapping[str, Any] | None, merges: _Merges) -> int:
    if token == UNKNOWN:
        return _UNKNOWN
    if added is not None and added.get("special"):
        return _CONTROL
    if token in _BYTES:
        return _BYTE
    # merges make a run of spaces as well, and what is user-defined would be printed with \u2581 in it
    if added is not None and not (_SPACE in token and token in merges.counts):
        return _USER_DEFINED
    return _NORMAL
