"""Tokenising by words gives the ids of the whole texts, whatever stands in them."""

import random

import pytest
from data_tokenizer import build_tokenizer
from tokenizers import AddedToken, normalizers, pre_tokenizers

from gemma_ft.data.tokens import words
from gemma_ft.data.tokens.turns import encode_texts
from gemma_ft.data.tokens.words import Words

SPACE = "\u2581"
PIECES = [
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n ",
    " \n",
    "\t",
    "the",
    "model",
    "user",
    "Hi",
    "ok",
    "q",
    "u",
]
PIECES += ["a", "b", "z", ".", "> </", "<end_of_turn>", "<bos>", "<0x41>", SPACE, "\0", "\1", "\2", "\u00e9"]
PIECES += ["\u4e2d\u6587", "\U0001f600", "\u200b", "\u00a0", "\u3000", "\r\n", "\x85"]


def whole_of(tokenizer):
    def whole(texts):
        tokenizer.backend_tokenizer.encode_special_tokens = True
        found = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    return whole


def encode(found, texts, whole):
    rows = found.encode(texts, whole)
    assert all(row.dtype == "int32" for row in rows)
    return [row.tolist() for row in rows]


def random_texts(count, seed=1):
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randrange(30))) for _ in range(count)]


@pytest.fixture(params=["plain", "merged border", "bundled"], scope="module")
def tokenizer(request, tiny):
    if request.param == "bundled":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tiny)
    return build_tokenizer([("q", "u"), (".", "\n\n")] if request.param == "merged border" else ())


def test_the_ids_are_those_of_the_whole_texts(tokenizer):
    texts, whole = random_texts(3000), whole_of(tokenizer)
    found = Words(tokenizer.backend_tokenizer)
    assert found.applies
    assert encode(found, texts, whole) == whole(texts)
    assert encode(found, texts[::-1], whole) == whole(texts)[::-1]  # now from memory
    assert encode(found, [], whole) == []
    assert encode(found, ["", " ", "\n", ""], whole) == whole(["", " ", "\n", ""])


def test_each_word_is_tokenised_once(tokenizer):
    asked, whole = [], whole_of(tokenizer)

    def counting(texts):
        asked.extend(texts)
        return whole(texts)

    found = Words(tokenizer.backend_tokenizer)
    text = "the model is the model\n\nthe  user is  ok"
    for _ in range(2):
        assert encode(found, [text, text], counting) == whole([text, text])
    assert sorted(asked) == sorted(["the", " model", " is", " the", "\n\n", "  user", "  ok"])


@pytest.mark.parametrize(
    "merges",
    [
        [("a", SPACE), ("a" + SPACE, "b")],
        [(".", "\n")],
        [("\n", "a")],
        [(SPACE, "\n")],
        [("\n", SPACE)],
        [(SPACE + SPACE, "\n"), ("o", SPACE + SPACE + "\n")],
    ],
)
def test_a_text_that_may_hold_a_token_across_words_is_tokenised_whole(merges):
    tokenizer = build_tokenizer(merges)
    texts, whole = (
        ["xa b", "a.\nb", "b\na", "a \nb", "a\n b", "foo  \n", *random_texts(2000)],
        whole_of(tokenizer),
    )
    found = Words(tokenizer.backend_tokenizer)
    assert found.applies
    assert encode(found, texts, whole) == whole(texts)


def test_a_vocabulary_full_of_such_tokens_is_not_cut():
    tokenizer = build_tokenizer([(letter, SPACE) for letter in "abcdefghi"])
    texts, whole = random_texts(200), whole_of(tokenizer)
    found = Words(tokenizer.backend_tokenizer)
    assert not found.applies
    assert encode(found, texts, whole) == whole(texts)


def lower(backend):
    backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Lowercase()])


def bytes_first(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()


def no_normalizer(backend):
    backend.normalizer = None


def drop_out(backend):
    backend.model.dropout = 0.5


def ignore_merges(backend):
    backend.model.ignore_merges = True


def strip(backend):
    backend.add_tokens([AddedToken("Hi", lstrip=True, rstrip=True)])


def single(backend):
    backend.add_tokens([AddedToken("ok", single_word=True)])


@pytest.mark.parametrize(
    "change", [lower, bytes_first, no_normalizer, drop_out, ignore_merges, strip, single]
)
def test_a_tokenizer_that_does_more_is_left_alone(change):
    tokenizer = build_tokenizer()
    change(tokenizer.backend_tokenizer)
    assert not Words(tokenizer.backend_tokenizer).applies


def test_added_tokens_are_seen_in_words_and_across_them():
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.add_tokens(["the model", "userok", AddedToken("u\nq", normalized=False)])
    texts, whole = ["in the model", "my userok is", "u\nq", *random_texts(1000)], whole_of(tokenizer)
    found = Words(tokenizer.backend_tokenizer)
    assert found.applies
    assert encode(found, texts, whole) == whole(texts)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(words, "_MOST_KEPT", 50)
    tokenizer = build_tokenizer()
    found, whole = Words(tokenizer.backend_tokenizer), whole_of(tokenizer)
    for start in range(0, 1000, 20):
        texts = [f"word{number} {'long' * 20}" for number in range(start, start + 20)]
        assert encode(found, texts, whole) == whole(texts)
        assert len(found._ids) <= 50
    assert max(map(len, found._ids)) <= 32


def test_long_batches_go_by_words_and_new_tokens_are_noticed(monkeypatch):
    monkeypatch.setattr(words, "_WORTH", 100)
    tokenizer = build_tokenizer()
    texts = random_texts(300, seed=3)
    first = encode_texts(texts, tokenizer)
    assert words._KNOWN[tokenizer]._ids
    assert first == whole_of(tokenizer)(texts)
    tokenizer.backend_tokenizer.add_tokens(["Hiok", "ab"])
    second = encode_texts([*texts, "Hiok"], tokenizer)
    assert second == whole_of(tokenizer)([*texts, "Hiok"])
    assert first != second[:-1]
