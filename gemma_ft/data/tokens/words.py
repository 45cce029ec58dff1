"""Tokenise word by word, each distinct word once: the ids of the whole texts for a fraction of the time.

Byte-pair encoding merges within a word only, unless the vocabulary has tokens that reach from one word into
the next. Words are cut before spaces and on both sides of line breaks; a text in which such a token could
stand, or which holds the marks that we cut with, is tokenised whole.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain, compress, pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerFast

    Array = numpy.ndarray[Any, Any]

_CUT, _NEXT = "\0", "\1"
"""Put between words, and between texts."""
_SPACE = "\u2581"
"""What the tokenizer makes of a space."""
_BETWEEN = "\ud800"
"""Half a character, which no token holds."""
_REACHES_ACROSS = re.compile(f"[^ {_SPACE}{_BETWEEN}][ {_SPACE}]|[^\n{_BETWEEN}]\n|\n[^\n{_BETWEEN}]")
_MOST_REACHING = 8
"""Tokens that reach across words in a vocabulary that is still cut; Gemma 3's has one."""
_MOST_KEPT, _LONGEST_KEPT = 200_000, 32
"""Words that are remembered, and how long they may be, so that memory is bounded."""

_WORTH = 50_000
"""Characters from which on it is worth while to look at words."""

Whole = Callable[[list[str]], list[list[int]]]
"""Tokenises texts as they are."""


def encode_by_words(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", whole: Whole
) -> "list[Array]":
    """Tokenise texts, many of them by their words.

    Args:
        texts: Texts without control tokens of ours.
        tokenizer: A tokenizer.
        whole: Tokenises texts as they are with this tokenizer.

    Returns:
        The ids that `whole` would give, of numpy's type int32.
    """
    if sum(map(len, texts)) < _WORTH:
        return _arrays(whole(list(texts)))
    backend = tokenizer.backend_tokenizer
    words = _KNOWN.get(tokenizer)
    if words is None or words.size != backend.get_vocab_size():
        words = _KNOWN[tokenizer] = Words(backend)
    return words.encode(texts, whole)


class Words:
    """The words that a tokenizer has met, with their ids."""

    def __init__(self, backend: Any) -> None:
        """Look at what the Rust tokenizer does to texts."""
        self.size = backend.get_vocab_size()
        reaching = _find_reaching(backend) if _merges_only(backend) else None
        self.applies = reaching is not None and len(reaching) <= _MOST_REACHING
        """Whether words can be told apart at all."""
        self._marks = (_CUT, _NEXT, _SPACE, *(reaching or ()))
        self._ids: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str], whole: Whole) -> "list[Array]":
        """Tokenise texts, with `whole` for what is not known yet."""
        as_one = [not self.applies or any(mark in text for mark in self._marks) for text in texts]
        ones = iter(_arrays(whole(list(compress(texts, as_one)))))
        others = iter(
            self._encode_words([text for text, one in zip(texts, as_one, strict=True) if not one], whole)
        )
        return [next(ones if one else others) for one in as_one]

    def _encode_words(self, texts: list[str], whole: Whole) -> "list[Array]":
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if not texts:
            return []
        words = pc.split_pattern(pa.array(_cut(_NEXT.join(texts)).split(_NEXT)), _CUT)
        coded = words.values.dictionary_encode()
        known = self._look_up(coded.dictionary.to_pylist(), whole)
        lengths = np.fromiter(map(len, known), np.int64, len(known))
        ids = np.fromiter(chain.from_iterable(known), np.int32)
        order = coded.indices.to_numpy()
        sizes = lengths[order]
        ends = np.cumsum(sizes)
        starts = (np.cumsum(lengths) - lengths)[order]
        places = np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
        bounds = np.concatenate([[0], ends])[words.offsets.to_numpy()].tolist()
        found = ids[places]
        return [found[start:end] for start, end in pairwise(bounds)]

    def _look_up(self, words: list[str], whole: Whole) -> list[list[int]]:
        new = [word for word in words if word not in self._ids]
        found = dict(zip(new, whole(new), strict=True))
        known = [found[word] if word in found else self._ids[word] for word in words]
        if len(self._ids) + len(found) > _MOST_KEPT:
            self._ids.clear()
        self._ids.update((word, ids) for word, ids in found.items() if len(word) <= _LONGEST_KEPT)
        return known


def _arrays(rows: list[list[int]]) -> "list[Array]":
    import numpy as np

    return [np.array(row, np.int32) for row in rows]


_KNOWN: "WeakKeyDictionary[PreTrainedTokenizerFast, Words]" = WeakKeyDictionary()


def _cut(text: str) -> str:
    """Mark where words begin: a run of spaces belongs to the word after it, line breaks to each other."""
    text = text.replace(" ", f"{_CUT} ").replace("\n", f"{_CUT}\n{_CUT}").replace(_CUT + _CUT, "")
    while f" {_CUT} " in text:
        text = text.replace(f" {_CUT} ", "  ")
    return text


def _merges_only(backend: Any) -> bool:
    """Tell whether a tokenizer marks spaces, merges pairs, and does nothing else to a text."""
    model = backend.model
    plain = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    splits = ({"type": "Split", "pattern": {"String": " "}, "invert": False},)
    return (
        type(model).__name__ == "BPE"
        and _settings(backend.normalizer) == plain
        and (backend.pre_tokenizer is None or _settings(backend.pre_tokenizer, "behavior") in splits)
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and not model.ignore_merges
        and all(backend.token_to_id(border) is not None for border in (_SPACE, "\n"))
        and not any(
            token.lstrip or token.rstrip or token.single_word
            for token in backend.get_added_tokens_decoder().values()
        )
    )


def _settings(part: Any, *ignored: str) -> dict[str, Any]:
    state = json.loads(part.__getstate__()) if part is not None else {}
    return {name: value for name, value in state.items() if name not in ignored}


def _find_reaching(backend: Any) -> set[str]:
    """Find the texts of the tokens that reach from one word into another; if they are many, some of them."""
    vocabulary = _BETWEEN.join(["", *backend.get_vocab(), ""])
    found: set[str] = set()
    for match in _REACHES_ACROSS.finditer(vocabulary):
        start, end = vocabulary.rindex(_BETWEEN, 0, match.start()), vocabulary.index(_BETWEEN, match.start())
        found.add(vocabulary[start + 1 : end].replace(_SPACE, " "))
        if len(found) > _MOST_REACHING:
            break
    return found
