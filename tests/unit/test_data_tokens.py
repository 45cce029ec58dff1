import pytest
from data_tokenizer import END, START, build_tokenizer

from gemma_ft.config.dataset import LossTarget, OnLongRow, Trim
from gemma_ft.data.contract import check_tokenizer
from gemma_ft.data.conversations import Conversation, Text
from gemma_ft.data.tokens import NOT_LEARNED, TokenRules, encode, encode_batch, prompt_ids
from gemma_ft.errors import DataError, ModelError

LONG = 10_000
TALKS = [
    [("user", "Hi the model"), ("assistant", "ok")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")],
    [("user", "  two  spaces  "), ("assistant", "\tdef f():\n        return 1\n\n\n# end\n")],
    [
        ("user", "caf\u00e9 \u4e2d\u6587 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645"),
        ("assistant", "\U0001f600\U0001f600"),
    ],
    [("user", "user\nmodel\nuser"), ("assistant", "model\nmodel\n\nuser\n")],
    [("user", "\u00a0x\u2028y\x00"), ("assistant", "- a\n- b\r\n")],
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def rules(loss_on=LossTarget.assistant, max_length=LONG, trim=Trim.template, on_long_row=OnLongRow.truncate):
    return TokenRules(loss_on=loss_on, trim=trim, on_long_row=on_long_row, max_length=max_length)


def messages(turns):
    return [{"role": role, "content": text} for role, text in turns]


def learned(tokenizer, turns, loss_on=LossTarget.assistant, max_length=LONG):
    """Give the text in the loss, with | between runs that do not touch."""
    ids, labels = encode(Conversation(tuple(turns)), tokenizer, loss_on, max_length)
    runs, current = [], []
    for token, label in zip(ids, labels, strict=True):
        assert label in (NOT_LEARNED, token)
        if label == NOT_LEARNED:
            runs, current = [*runs, current], []
        else:
            current.append(token)
    return "|".join(tokenizer.decode(run) for run in [*runs, current] if run)


@pytest.mark.parametrize("turns", TALKS)
def test_the_ids_are_those_of_the_whole_rendered_template(tokenizer, turns):
    ids, _ = encode(Conversation(tuple(turns)), tokenizer, LossTarget.assistant, LONG)
    assert ids == tokenizer.apply_chat_template(messages(turns), tokenize=True, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("turns", TALKS)
def test_the_template_renders_gemmas_format(tokenizer, turns):
    expected = "<bos>"
    for role, text in turns:
        name = "model" if role == "assistant" else "user"
        expected += f"<start_of_turn>{name}\n{text.strip()}<end_of_turn>\n"
    assert tokenizer.apply_chat_template(messages(turns), tokenize=False) == expected
    head = tokenizer.apply_chat_template(messages(turns[:1]), tokenize=False, add_generation_prompt=True)
    assert head == f"<bos><start_of_turn>user\n{turns[0][1].strip()}<end_of_turn>\n<start_of_turn>model\n"


def test_the_template_puts_a_system_message_before_the_users_words(tokenizer):
    turns = [("system", " Be brief. "), ("user", " Hi "), ("assistant", "ok")]
    rendered = tokenizer.apply_chat_template(messages(turns), tokenize=False)
    assert rendered.startswith("<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n")


@pytest.mark.parametrize(
    "turns", [[("assistant", "a")], [("user", "a"), ("user", "b")], [("user", "a"), ("system", "b")]]
)
def test_the_template_refuses_turns_that_do_not_alternate(tokenizer, turns):
    with pytest.raises(Exception, match="Turns must alternate"):
        tokenizer.apply_chat_template(messages(turns), tokenize=False)


def test_the_loss_is_on_the_assistants_words_and_the_end_of_its_turns(tokenizer):
    talk = [("user", "a"), ("assistant", " the b "), ("user", "c"), ("assistant", "d\n\u4e2d")]
    assert learned(tokenizer, talk) == "the b<end_of_turn>\n|d\n\u4e2d<end_of_turn>\n"
    assert learned(tokenizer, talk, LossTarget.last_turn) == "d\n\u4e2d<end_of_turn>\n"
    whole = tokenizer.apply_chat_template(messages(talk), tokenize=False)
    assert learned(tokenizer, talk, LossTarget.all) == whole.removeprefix("<bos>")


def test_words_that_look_like_a_turns_head_do_not_move_the_mask(tokenizer):
    assert learned(tokenizer, TALKS[4]) == "model\nmodel\n\nuser<end_of_turn>\n"


def test_a_merge_across_the_head_is_learned_with_the_answer():
    tokenizer = build_tokenizer(merges=[("\n", "ok")])
    assert learned(tokenizer, [("user", "a"), ("assistant", "ok the")]) == "\nok the<end_of_turn>\n"


@pytest.mark.parametrize(
    "typed", ["<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>", "<pad>", "<mask>", "<unk>"]
)
def test_a_typed_control_token_stays_text(tokenizer, typed):
    words = f"say {typed} now"
    ids, _ = encode(
        Conversation((("user", words), ("assistant", words))), tokenizer, LossTarget.assistant, LONG
    )
    assert (ids.count(START), ids.count(END), ids.count(2)) == (2, 2, 1)
    assert not {0, 1, 3, 4} & set(ids)
    assert tokenizer.decode(ids).count(words) == 2
    text_ids, _ = encode(Text(words), tokenizer, LossTarget.assistant, LONG)
    assert not {0, 3, 4, START, END} & set(text_ids[1:-1])
    assert 1 not in text_ids[1:-1]


def test_the_tokenizer_is_given_back_as_it_was(tokenizer):
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(pad_id=0, length=9)
    try:
        ids, _ = encode(Text("Hi the model"), tokenizer, LossTarget.assistant, LONG)
        assert tokenizer.decode(ids) == "<bos>Hi the model<eos>"
        assert backend.truncation["max_length"] == 3
        assert backend.padding["length"] == 9
        assert backend.encode_special_tokens is False
    finally:
        backend.no_truncation()
        backend.no_padding()


def test_plain_text_stands_between_bos_and_eos_and_is_learned_whole(tokenizer):
    for loss_on in LossTarget:
        ids, labels = encode(Text(" Hi \n"), tokenizer, loss_on, LONG)
        assert tokenizer.decode(ids) == "<bos> Hi \n<eos>"
        assert labels == [NOT_LEARNED, *ids[1:]]


@pytest.mark.parametrize("loss_on", list(LossTarget))
def test_a_row_is_cut_at_every_length_without_a_change_of_what_is_left(tokenizer, loss_on):
    talk = Conversation(tuple(TALKS[2] + TALKS[3]))
    ((whole,),) = encode_batch([talk], tokenizer, rules(loss_on))
    assert not whole.cut
    for length in range(1, len(whole.input_ids) + 2):
        ((row,),) = encode_batch([talk], tokenizer, rules(loss_on, length))
        assert row.input_ids.tolist() == whole.input_ids[:length].tolist()
        assert row.labels.tolist() == whole.labels[:length].tolist()
        assert row.cut == (length < len(whole.input_ids))
        assert row.trained == sum(label != NOT_LEARNED for label in row.labels)


def test_a_batch_is_the_rows_one_by_one(tokenizer):
    examples = [Conversation(tuple(turns)) for turns in TALKS] + [Text("Hi"), Text("ok")]
    rows = encode_batch(examples, tokenizer, rules(LossTarget.last_turn, 40))
    assert [(row.input_ids.tolist(), row.labels.tolist()) for (row,) in rows] == [
        encode(one, tokenizer, LossTarget.last_turn, 40) for one in examples
    ]


def test_prompt_ids_are_the_template_with_the_head_of_the_models_turn(tokenizer):
    talk = messages([("system", "Be brief."), ("user", "Hi"), ("assistant", "ok"), ("user", " say <eos> ")])
    ids = prompt_ids(tokenizer, talk)
    assert 1 not in ids
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    )
    talk[-1]["content"] = "more"
    assert ids != prompt_ids(tokenizer, talk)
    rendered = tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert prompt_ids(tokenizer, talk) == rendered
    with pytest.raises(DataError, match="The last turn must be the user's"):
        prompt_ids(tokenizer, talk[:3])


def test_a_tokenizer_of_gemmas_kind_passes(tokenizer):
    check_tokenizer(tokenizer, "google/gemma-2b")


def _without_turns(tokenizer):
    from tokenizers import Tokenizer

    state = tokenizer.backend_tokenizer.to_str().replace("<end_of_turn>", "<end_of_talk>")
    tokenizer._tokenizer = Tokenizer.from_str(state)


def _pad_is_eos(tokenizer):
    tokenizer.pad_token = "<eos>"


def _no_pad(tokenizer):
    tokenizer.pad_token = None


def _turns_are_ordinary(tokenizer):
    from tokenizers import Tokenizer

    state = tokenizer.backend_tokenizer.to_str().replace('"special":true', '"special":false')
    tokenizer._tokenizer = Tokenizer.from_str(state)


def _space_before_each_text(tokenizer):
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_without_turns, "without <end_of_turn> as one token"),
        (_pad_is_eos, "that pads with <eos>, where it must be <pad>"),
        (_no_pad, "that pads with nothing, where it must be <pad>"),
        (_turns_are_ordinary, "that takes control tokens typed in a text for real ones"),
        (_space_before_each_text, "that changes the text beside control tokens"),
    ],
)
def test_a_tokenizer_that_breaks_the_contract_is_refused(spoil, fault):
    tokenizer = build_tokenizer()
    spoil(tokenizer)
    with pytest.raises(
        ModelError, match=rf"^model\.path=my/model has a tokenizer {fault}\. Use the tokenizer of a"
    ):
        check_tokenizer(tokenizer, "my/model")
