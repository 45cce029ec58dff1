"""Turns and texts as ids, through the Rust tokenizer with nothing added, cut or recognised by itself."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_ft import families
from gemma_ft.config.dataset import Trim
from gemma_ft.data.tokens.words import encode_by_words

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerFast

    Array = numpy.ndarray[Any, Any]

_CONTROL = (families.BOS, families.EOS, families.PAD, families.START_OF_TURN, families.END_OF_TURN)
_HOME = os.getpid()
_PARALLELISM = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """A whole turn, from its <start_of_turn> to the line break after its <end_of_turn>."""

    ids: "Array"
    answer: bool
    """Whether it is the assistant's."""
    head: int
    """Tokens before the first that belongs to the turn's words."""
    end: int
    """Where its <end_of_turn> stands."""


def control_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Look up the ids of the control tokens that we set ourselves."""
    return {token: tokenizer.backend_tokenizer.token_to_id(token) for token in _CONTROL}


def stop_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """List the ids that a text or an answer ends with."""
    ids = control_ids(tokenizer)
    return sorted({ids[families.EOS], ids[families.END_OF_TURN], tokenizer.eos_token_id})


def trim_answer(text: str, trim: Trim) -> str:
    """Trim an answer: as the template does, or all but the spaces and tabs right before its first word."""
    stripped = text.strip()
    if trim is Trim.template:
        return stripped
    before = text[: len(text) - len(text.lstrip())]
    return before[len(before.rstrip(" \t")) :] + stripped


def encode_turns(
    conversations: Sequence[Sequence[tuple[str, str]]], tokenizer: "PreTrainedTokenizerFast", trim: Trim
) -> list[list[EncodedTurn]]:
    """Tokenise conversations.

    A token that merges across the border between a turn's header and its words belongs to the words.

    Args:
        conversations: Roles (user or assistant) and texts of each one's turns.
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        trim: What is cut from the ends of an answer.
    """
    import numpy as np

    texts = [
        families.MODEL_HEADER + trim_answer(text, trim)
        if role == "assistant"
        else families.USER_HEADER + text.strip()
        for turns in conversations
        for role, text in turns
    ]
    *encoded, header, newline = _encode([*texts, families.MODEL_HEADER, "\n"], tokenizer)
    control = control_ids(tokenizer)
    before = np.array([control[families.START_OF_TURN]], np.int32)
    after = np.array([control[families.END_OF_TURN], *newline], np.int32)
    pairs = iter(zip(texts, encoded, strict=True))

    def build(role: str) -> EncodedTurn:
        text, ids = next(pairs)
        head = _head(text, ids, header, tokenizer) if role == "assistant" else 0
        return EncodedTurn(np.concatenate((before, ids, after)), role == "assistant", 1 + head, 1 + len(ids))

    return [[build(role) for role, _ in turns] for turns in conversations]


def _head(text: str, ids: "Array", header: "Array", tokenizer: "PreTrainedTokenizerFast") -> int:
    """Count the tokens that end before the first word of an answer."""
    if ids[: len(header)].tobytes() == header.tobytes():
        return len(header)
    with _as_ordinary_text(tokenizer) as backend:
        offsets = backend.encode(text, add_special_tokens=False).offsets
    return sum(1 for _, end in offsets if end <= len(families.MODEL_HEADER))


def encode_texts(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> list[list[int]]:
    """Tokenise texts on all cores, control tokens typed in them as ordinary text."""
    return [ids.tolist() for ids in _encode(texts, tokenizer)]


def _encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> "list[Array]":
    with _as_ordinary_text(tokenizer) as backend, _on_all_cores():

        def whole(some: list[str]) -> list[list[int]]:
            encodings = backend.encode_batch_fast(some, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]

        return encode_by_words(texts, tokenizer, whole)


@contextmanager
def _as_ordinary_text(tokenizer: "PreTrainedTokenizerFast") -> Iterator[Any]:
    """Lend the Rust tokenizer in a state in which it adds, cuts and recognises nothing by itself."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        backend.encode_special_tokens = before[0]
        if before[1] is not None:
            backend.enable_truncation(**before[1])
        if before[2] is not None:
            backend.enable_padding(**before[2])


@contextmanager
def _on_all_cores() -> Iterator[None]:
    """Let the tokenizer use threads, which the program has switched off for the sake of forks."""
    if os.getpid() != _HOME:  # a fork has none of its parent's threads and would wait for them
        yield
        return
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = before or "false"  # unset, the next fork would warn of the threads
