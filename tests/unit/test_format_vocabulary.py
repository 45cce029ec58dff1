"""A tokenizer.json as llama.cpp's vocabulary: what it says, and the tokenizers that it cannot."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from data_tokenizer import build_tokenizer, find_tokenizers

from gemma_ft.errors import ExportError
from gemma_ft.exporting.formats.gguf_vocabulary import build_vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@pytest.fixture
def folder(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_tokens_stand_at_their_ids_with_their_kinds(folder):
    vocabulary = build_vocabulary(folder, 470)
    assert vocabulary.tokens[:3] == ["<pad>", "<eos>", "<bos>"]
    assert (vocabulary.tokens[106], vocabulary.tokens[107]) == ("<start_of_turn>", "<end_of_turn>")
    assert vocabulary.types[:4] == [CONTROL, CONTROL, CONTROL, UNKNOWN]
    assert [vocabulary.types[i] for i in (106, 107)] == [CONTROL, CONTROL]
    assert vocabulary.types[vocabulary.tokens.index("<0x41>")] == BYTE
    assert vocabulary.types[vocabulary.tokens.index("model")] == NORMAL
    assert vocabulary.types[vocabulary.tokens.index("\n")] == NORMAL


def test_rows_without_a_token_are_named_as_llama_cpp_names_them(folder):
    count = len(build_tokenizer())
    vocabulary = build_vocabulary(folder, count + 2)
    assert vocabulary.tokens[count:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    assert vocabulary.types[count:] == [UNUSED, UNUSED]
    assert len(build_vocabulary(folder, count - 1).tokens) == count - 1


def test_scores_fall_in_the_order_of_the_merges(folder):
    vocabulary = build_vocabulary(folder, 464)
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    scores = [vocabulary.scores[vocabulary.tokens.index("".join(pair))] for pair in merges]
    assert all(first > second for first, second in pairwise(scores))
    assert max(vocabulary.scores[vocabulary.tokens.index(t)] for t in ("<unused5>", "a")) < min(scores)


def test_merges_written_as_one_text_are_read_alike(folder):
    before = build_vocabulary(folder, 464)
    edit(
        folder,
        lambda content: content["model"].update(merges=[" ".join(m) for m in content["model"]["merges"]]),
    )
    assert build_vocabulary(folder, 464) == before


def test_added_token_is_user_defined_unless_it_is_a_run_of_spaces_that_merges_make(folder):
    def add(content):
        for token in ("\n\n", "\u2581\u2581", "<unused5>"):
            number = content["model"]["vocab"][token]
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            content["added_tokens"].append({"id": number, "content": token, **flags})

    edit(folder, add)
    vocabulary = build_vocabulary(folder, 464)
    kinds = {token: vocabulary.types[vocabulary.tokens.index(token)] for token in ("\n\n", "\u2581\u2581")}
    assert kinds == {"\n\n": USER_DEFINED, "\u2581\u2581": NORMAL}
    assert vocabulary.types[vocabulary.tokens.index("<unused5>")] == USER_DEFINED


def test_every_split_of_a_piece_as_a_merge_is_accepted(folder):
    """SentencePiece's vocabularies become merges so: whichever way a piece is cut, the cut is a merge."""

    def complete(content):
        vocab, merges = content["model"]["vocab"], []
        for piece in sorted((p for p in vocab if len(p) > 1 and not p.startswith("<")), key=vocab.get):
            merges += [
                [piece[:i], piece[i:]] for i in range(1, len(piece)) if {piece[:i], piece[i:]} <= vocab.keys()
            ]
        merges.insert(0, merges.pop(merges.index(["\n", "\n"])))
        content["model"]["merges"] = merges

    edit(folder, lambda content: content["model"]["vocab"].update({"od": 464, "odel": 465, "el": 466}))
    edit(folder, complete)
    vocabulary = build_vocabulary(folder, 467)
    score = {token: vocabulary.scores[number] for number, token in enumerate(vocabulary.tokens)}
    assert score["\n\n"] == 0
    assert score["mo"] > score["mod"] > score["mode"] > score["model"] > score["od"] > score["el"]


def set_model(**values):
    return lambda content: content["model"].update(values)


def swap_merges(content):
    content["model"]["vocab"]["od"] = 464  # a split of "mod" that no merge has: the order counts then
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def scatter(content):
    content["model"]["vocab"]["od"] = 464
    content["model"]["merges"] += [["o", "d"], ["m", "od"]]


def lose_a_merge(content):
    content["model"]["merges"].remove(["us", "e"])
    content["model"]["merges"].remove(["use", "r"])


def shadow(content):
    content["model"]["vocab"]["he"] = 464
    content["model"]["merges"].insert(0, ["h", "e"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_model(type="WordLevel"), "its model is WordLevel, not BPE with byte fallback"),
        (set_model(byte_fallback=False), "its model is BPE, not BPE with byte fallback"),
        (set_model(ignore_merges=True), "its model has ignore_merges=True"),
        (set_model(dropout=0.1), "its model has dropout=0.1"),
        (lambda content: content.update(normalizer={"type": "NFKC"}), "it does more to a text than to write"),
        (lambda content: content.update(pre_tokenizer={"type": "Digits"}), "it cuts texts by Digits"),
        (lambda content: content["model"]["vocab"].update({"other": 464 + 7}), "its ids have gaps"),
        (lambda content: content["added_tokens"][0].update(lstrip=True), "its token <pad> has lstrip"),
        (swap_merges, "'mod' is made of 'mo', which a later merge makes"),
        (scatter, "the merges of 'mod' have others between them"),
        (lose_a_merge, "'use' would be made of two tokens, which no merge does"),
        (shadow, "'the' is no token of its own text"),
    ],
)
def test_tokenizer_that_gguf_cannot_hold_is_refused(change, reason, folder):
    edit(folder, change)
    with pytest.raises(ExportError, match=f"has a tokenizer that GGUF cannot hold: {reason}.*Leave the gguf"):
        build_vocabulary(folder, 470)


def rename(old, new):
    def change(content):
        vocab = content["model"]["vocab"]
        vocab[new] = vocab.pop(old)
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != old]

    return change


@pytest.mark.parametrize("token", ["<0xE2>", "<end_of_turn>"])
def test_token_that_llama_cpp_cannot_do_without_is_asked_for(token, folder):
    edit(folder, rename(token, "something"))
    with pytest.raises(ExportError, match=f"cannot hold: it lacks (the byte )?{token}"):
        build_vocabulary(folder, 470)


def test_byte_whose_character_is_a_token_is_needless(folder):
    edit(folder, rename("<0x41>", "something"))
    assert "A" in build_vocabulary(folder, 464).tokens


def test_folder_without_tokenizer_json_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"cannot hold: there is no tokenizer\.json"):
        build_vocabulary(folder, 464)


def test_token_that_is_called_like_an_empty_row_is_refused(folder):
    edit(folder, rename("<unused5>", "[PAD466]"))
    with pytest.raises(
        ExportError, match=r"has the token '\[PAD466\]' twice in what GGUF would hold. Rename it"
    ):
        build_vocabulary(folder, 470)


@pytest.mark.skipif(not find_tokenizers(), reason="GEMMA_TOKENIZERS names no folders of real tokenizers")
@pytest.mark.parametrize("where", find_tokenizers())
def test_real_tokenizers_are_held(where):
    vocabulary = build_vocabulary(Path(where), 262_208)
    assert vocabulary.tokens[2] == "<bos>"
    assert len(set(vocabulary.tokens)) == 262_208
