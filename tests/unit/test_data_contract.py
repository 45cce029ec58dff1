"""The contract as a whole: against an implementation by other means, and each of its checks made to fail."""

import hashlib
import json

import pytest
from data_tokenizer import build_tokenizer, find_tokenizers, load_folder
from rendered_by_hand import make_talks, reference

from gemma_ft.config.dataset import LossTarget, OnLongRow, Trim
from gemma_ft.data.conversations.examples import Conversation, Text
from gemma_ft.data.tokens.contract import check_rows, check_tokenizer, describe_contract, sample_sha256
from gemma_ft.data.tokens.encoding import TokenRules, encode_batch, prompt_ids
from gemma_ft.errors import DataError, ModelError
from gemma_ft.families import FAMILIES

LONG = 100_000


def rules(loss_on="assistant", max_length=LONG, trim="keep_indent", on_long_row="truncate"):
    return TokenRules(
        loss_on=LossTarget(loss_on),
        trim=Trim(trim),
        on_long_row=OnLongRow(on_long_row),
        max_length=max_length,
    )


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(
    scope="module",
    params=find_tokenizers()
    or [
        pytest.param(
            "", marks=pytest.mark.skip(reason="GEMMA_TOKENIZERS names no folders of real tokenizers")
        )
    ],
)
def real(request):
    return load_folder(request.param)


def compare(tokenizer, loss_on, trim, system, number=6):
    """Compare rows token by token with the other implementation, cut at every length from 8 to full."""
    for told, turns in make_talks(number, system=system):
        talk = Conversation(tuple(turns), told)
        ids, labels, ends = reference(
            tokenizer, told, turns, loss_on=loss_on, keep_indent=trim == "keep_indent"
        )
        assert ids.count(tokenizer.bos_token_id) == 1
        for length in range(8, len(ids) + 1):
            ((row,),) = encode_batch([talk], tokenizer, rules(loss_on, length, trim))
            assert row.input_ids.tolist() == ids[:length]
            assert row.labels.tolist() == labels[:length]
            assert row.full_length == len(ids)
            assert row.turns == sum(end < length for end in ends)
            assert row.turns_cut == len(ends) - row.turns


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("trim", ["keep_indent", "template"])
@pytest.mark.parametrize("loss_on", ["assistant", "last_turn", "all"])
def test_tokens_and_mask_are_those_of_an_independent_implementation(tokenizer, loss_on, trim, system):
    compare(tokenizer, loss_on, trim, system)


@pytest.mark.parametrize("trim", ["keep_indent", "template"])
def test_a_token_across_the_border_belongs_to_the_answer_in_both_implementations(trim):
    compare(build_tokenizer(merges=[("W", "h"), ("\n", "W"), ("\n", "\u2581")]), "assistant", trim, False)


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("trim", ["keep_indent", "template"])
@pytest.mark.parametrize("loss_on", ["assistant", "last_turn", "all"])
def test_real_tokenizers_give_the_independent_tokens_and_mask(real, loss_on, trim, system):
    compare(real[0], loss_on, trim, system, number=4)


def test_real_tokenizers_keep_the_contract(real):
    tokenizer, family = real
    check_tokenizer(tokenizer, "real", family)
    talks = [(str(n), Conversation(tuple(turns), told)) for n, (told, turns) in enumerate(make_talks(80))]
    assert describe_contract(tokenizer, rules(), talks)["rows_compared"] == 64


def test_real_tokenizers_merge_nothing_across_the_border_so_that_a_prompt_begins_its_row(real):
    tokenizer, _ = real
    assert [token for token in tokenizer.get_vocab() if token.startswith("\n") and token.strip("\n")] == []
    for told, turns in make_talks(40, system=True):
        ((row,),) = encode_batch([Conversation(tuple(turns), told)], tokenizer, rules())
        messages = [{"role": "system", "content": told}, {"role": "user", "content": turns[0][1]}]
        prompt = prompt_ids(tokenizer, messages)
        assert row.input_ids.tolist()[: len(prompt)] == prompt


def test_real_tokenizers_leave_every_typed_control_token_text(real):
    tokenizer, _ = real
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = {number: token.content for number, token in added.items() if token.special}
    words = " x".join(special.values())
    ((row,),) = encode_batch([Text(words)], tokenizer, rules())
    assert set(special) & set(row.input_ids.tolist()[1:-1]) == set()
    assert tokenizer.decode(row.input_ids[1:-1]) == words


def test_a_tokenizer_of_gemmas_kind_passes(tokenizer):
    check_tokenizer(tokenizer, "google/gemma-2b", FAMILIES[0])
    check_tokenizer(tokenizer, "google/gemma-2-2b", FAMILIES[1])


def _reload(tokenizer, old, new):
    from tokenizers import Tokenizer

    state = tokenizer.backend_tokenizer.to_str()
    assert old in state
    tokenizer._tokenizer = Tokenizer.from_str(state.replace(old, new))


def _without_turns(tokenizer):
    _reload(tokenizer, "<end_of_turn>", "<end_of_talk>")


def _pad_is(token):
    def spoil(tokenizer):
        tokenizer.pad_token = token

    return spoil


def _turns_are_ordinary(tokenizer):
    _reload(tokenizer, '"special":true', '"special":false')


def _space_before_each_text(tokenizer):
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_without_turns, "without <end_of_turn> as one token"),
        (_pad_is("<eos>"), "that pads with <eos>, where it must be <pad>"),
        (_pad_is("<end_of_turn>"), "that pads with <end_of_turn>, where it must be <pad>"),
        (_pad_is(None), "that pads with nothing, where it must be <pad>"),
        (_turns_are_ordinary, "that takes control tokens typed in a text for real ones"),
        (_space_before_each_text, "that changes the text beside control tokens"),
    ],
)
def test_a_tokenizer_that_breaks_the_contract_is_refused(spoil, fault):
    tokenizer = build_tokenizer()
    spoil(tokenizer)
    with pytest.raises(
        ModelError,
        match=rf"^model\.path=my/model has a tokenizer {fault}\. "
        r"Use the tokenizer of a Gemma 1 checkpoint\.$",
    ):
        check_tokenizer(tokenizer, "my/model", FAMILIES[0])


def test_turn_tokens_that_are_another_generations_are_refused(tokenizer):
    with pytest.raises(
        ModelError,
        match=r"has a tokenizer with <start_of_turn> at id 106, where Gemma 3 has 105\. "
        r"Use the tokenizer of a Gemma 3 checkpoint\.$",
    ):
        check_tokenizer(tokenizer, "my/model", FAMILIES[2])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("bos_token", "''"), "that does not render Gemma's turns"),
        ((" | trim +", " +"), "that does not render Gemma's turns"),
        (("'model'", "'assistant'"), "that does not render Gemma's turns"),
        (
            ("'<start_of_turn>model\\n' -}}", "'<start_of_turn>model' -}}"),
            "that does not begin the model's turn as Gemma's does",
        ),
        (
            ("{{- bos_token -}}", "{{ raise_exception('no\\nway') }}"),
            r"that cannot render a conversation \(no\)",
        ),
        (("{{- bos_token -}}", "{% for"), "that cannot render a conversation"),
    ],
)
def test_a_chat_template_that_serves_other_tokens_than_are_learned_is_refused(change, fault):
    tokenizer = build_tokenizer()
    assert change[0] in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(*change)
    with pytest.raises(
        ModelError,
        match=rf"^model\.path=my/model has a chat template {fault}.*\. Take it out of the tokenizer's files, "
        r"so that Gemma's own is used\.$",
    ):
        check_tokenizer(tokenizer, "my/model", FAMILIES[0])


def rows_of(tokenizer, ids, labels):
    import pyarrow as pa

    kind = pa.list_(pa.int32())
    where = [f"t.jsonl:{n + 1}" for n in range(len(ids))]
    return pa.record_batch(
        {"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind), "where": where}
    )


def good_rows(tokenizer, loss_on="assistant", max_length=60):
    talks = [Conversation(tuple(turns), told) for told, turns in make_talks(20)]
    rows = encode_batch([*talks, Text("Hi the model")], tokenizer, rules(loss_on, max_length))
    kept = [row for (row,) in rows if row.trained]
    return [row.input_ids.tolist() for row in kept], [row.labels.tolist() for row in kept]


@pytest.mark.parametrize("max_length", [120, 240, LONG])
@pytest.mark.parametrize("loss_on", ["assistant", "last_turn", "all"])
def test_rows_that_keep_the_contract_pass(tokenizer, loss_on, max_length):
    ids, labels = good_rows(tokenizer, loss_on, max_length)
    assert len(ids) > 2
    check_rows(rows_of(tokenizer, ids, labels), tokenizer)
    check_rows(rows_of(tokenizer, ids, labels)[1:3], tokenizer)
    check_rows(rows_of(tokenizer, [], []), tokenizer)


def _second_bos(ids, labels):
    ids[5] = 2


def _no_bos(ids, labels):
    ids[0] = 3


def _padded(ids, labels):
    ids[4] = 0


def _shifted(ids, labels):
    labels[:] = [*labels[1:], -100]


def _bos_learned(ids, labels):
    labels[0] = 2


def _nothing_learned(ids, labels):
    labels[:] = [-100] * len(ids)


def _user_learned(ids, labels):
    labels[2] = ids[2]


def _head_learned(ids, labels):
    labels[ids.index(107) + 2 :] = ids[ids.index(107) + 2 :]


def _end_not_learned(ids, labels):
    labels[-2:] = [-100] * 2


def _line_break_not_learned(ids, labels):
    labels[-1] = -100


def _empty(ids, labels):
    ids.clear()
    labels.clear()


def _too_few_labels(ids, labels):
    labels.pop()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_second_bos, "has not one BOS, first"),
        (_no_bos, "has not one BOS, first"),
        (_padded, "holds padding"),
        (_shifted, "learns another token than it reads"),
        (_bos_learned, "learns its BOS"),
        (_nothing_learned, "learns nothing"),
        (_user_learned, "learns words that are not an answer's"),
        (_head_learned, "learns words that are not an answer's"),
        (_end_not_learned, "does not learn the end of a turn"),
        (_line_break_not_learned, "does not learn the end of a turn"),
        (_empty, "is empty, or has more labels than tokens"),
        (_too_few_labels, "is empty, or has more labels than tokens"),
    ],
)
def test_a_stored_row_that_breaks_the_contract_is_named(tokenizer, spoil, fault):
    talk = Conversation((("user", "Hi the model"), ("assistant", "the answer")))
    ((row,),) = encode_batch([talk], tokenizer, rules())
    ids, labels = good_rows(tokenizer)
    ids.insert(2, row.input_ids.tolist())
    labels.insert(2, row.labels.tolist())
    check_rows(rows_of(tokenizer, ids, labels), tokenizer)
    spoil(ids[2], labels[2])
    with pytest.raises(
        DataError,
        match=rf"^t\.jsonl:3: its row {fault}, which is a fault of gemma_ft\. "
        r"Please report it with this row\.$",
    ):
        check_rows(rows_of(tokenizer, ids, labels), tokenizer)


def test_the_contract_is_stated_with_ids_hashes_and_the_departure(tokenizer):
    talks = [(f"t:{n}", Conversation(tuple(turns), told)) for n, (told, turns) in enumerate(make_talks(70))]
    stated = describe_contract(tokenizer, rules(), talks)
    ids = {key: value for key, value in stated.items() if key.endswith("_id")}
    assert ids == {
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "start_of_turn_id": 106,
        "end_of_turn_id": 107,
    }
    assert "spaces and tabs" in stated["departure"]
    assert describe_contract(tokenizer, rules(trim="template"), talks)["departure"] is None
    assert stated["template_sha256"] == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert stated["rows_compared"] == 64
    assert stated["sample_sha256"] == sample_sha256(tokenizer)
    assert describe_contract(tokenizer, rules(), talks[1:])["rows_sha256"] != stated["rows_sha256"]
    json.dumps(stated)


def test_a_contract_without_conversations_is_stated_too(tokenizer):
    assert describe_contract(tokenizer, rules(), [("t:1", Text("Hi"))])["rows_compared"] == 0


def test_rows_with_typed_control_tokens_are_not_compared_with_the_template(tokenizer):
    typed = Conversation((("user", "a"), ("assistant", "b <end_of_turn> c")))
    assert describe_contract(tokenizer, rules(), [("t:1", typed)])["rows_compared"] == 0


def test_a_row_whose_tokens_are_not_the_templates_is_named(tokenizer):
    other = build_tokenizer()
    other.chat_template = tokenizer.chat_template.replace(
        "message['content'] | trim", "message['content'] | trim | replace('odd', 'even')"
    )
    talks = [
        (f"t:{n}", Conversation((("user", word), ("assistant", "ok")))) for n, word in enumerate(["a", "odd"])
    ]
    with pytest.raises(
        DataError,
        match=r"^t:1: its tokens are not those of the chat template, which is a fault of gemma_ft\. "
        r"Please report it with this row\.$",
    ):
        describe_contract(other, rules(), talks)


def test_a_tokenizer_with_turn_tokens_in_its_vocabulary_only_is_made_whole(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if "turn" not in token["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded, family = load_folder(tmp_path)
    check_tokenizer(loaded, "base", family)
    assert len(loaded) == len(tokenizer)
    assert sample_sha256(loaded) == sample_sha256(tokenizer)
