import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_tokenizer import END, START, build_tokenizer
from rendered_by_hand import make_talks

from gemma_ft.config.dataset import LossTarget, OnLongRow, Trim
from gemma_ft.data.conversations.examples import Conversation, Text
from gemma_ft.data.tokens.encoding import (
    NOT_LEARNED,
    TokenRules,
    encode_batch,
    find_control_token,
    prompt_ids,
)
from gemma_ft.errors import DataError

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


def row_of(tokenizer, example, loss_on=LossTarget.assistant, max_length=LONG, **more):
    ((row,),) = encode_batch([example], tokenizer, rules(loss_on, max_length, **more))
    return row.input_ids.tolist(), row.labels.tolist()


def learned(tokenizer, turns, loss_on=LossTarget.assistant, max_length=LONG, **more):
    """Give the text in the loss, with | between runs that do not touch."""
    ids, labels = row_of(tokenizer, Conversation(tuple(turns)), loss_on, max_length, **more)
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
    ids, _ = row_of(tokenizer, Conversation(tuple(turns)))
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
    ids, _ = row_of(tokenizer, Conversation((("user", words), ("assistant", words))))
    assert (ids.count(START), ids.count(END), ids.count(2)) == (2, 2, 1)
    assert not {0, 1, 3, 4} & set(ids)
    assert tokenizer.decode(ids).count(words) == 2
    text_ids, _ = row_of(tokenizer, Text(words))
    assert not {0, 3, 4, START, END} & set(text_ids[1:-1])
    assert 1 not in text_ids[1:-1]


def test_the_tokenizer_is_given_back_as_it_was(tokenizer):
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(pad_id=0, length=9)
    try:
        ids, _ = row_of(tokenizer, Text("Hi the model"))
        assert tokenizer.decode(ids) == "<bos>Hi the model<eos>"
        assert backend.truncation["max_length"] == 3
        assert backend.padding["length"] == 9
        assert backend.encode_special_tokens is False
    finally:
        backend.no_truncation()
        backend.no_padding()


def test_plain_text_stands_between_bos_and_eos_and_is_learned_whole(tokenizer):
    for loss_on in LossTarget:
        ids, labels = row_of(tokenizer, Text(" Hi \n"), loss_on)
        assert tokenizer.decode(ids) == "<bos> Hi \n<eos>"
        assert labels == [NOT_LEARNED, *ids[1:]]


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("    def f():\n        return 1\n", "    def f():\n        return 1"),
        ("\n\n\t\tx \n\t", "\t\tx"),
        ("  \n \t y", " \t y"),
        ("\u00a0 z", " z"),
        ("plain ", "plain"),
    ],
)
def test_an_answer_keeps_the_spaces_and_tabs_before_its_first_word(tokenizer, answer, kept):
    talk = [("user", "  a\t"), ("assistant", answer)]
    assert learned(tokenizer, talk, trim=Trim.keep_indent) == f"{kept}<end_of_turn>\n"
    assert learned(tokenizer, talk, trim=Trim.template) == f"{answer.strip()}<end_of_turn>\n"
    ids, _ = row_of(tokenizer, Conversation(tuple(talk)), trim=Trim.keep_indent)
    assert tokenizer.decode(ids).startswith("<bos><start_of_turn>user\na<end_of_turn>\n")
    prompt = prompt_ids(tokenizer, messages(talk[:1]))
    assert ids[: len(prompt)] == prompt


def test_a_system_message_stands_before_the_first_question(tokenizer):
    talk = Conversation((("user", " Hi"), ("assistant", "ok")), system=" Be brief.\n")
    ids, _ = row_of(tokenizer, talk)
    assert tokenizer.decode(ids).startswith("<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n")


def test_a_turn_that_is_cut_is_counted_and_its_end_is_not_learned(tokenizer):
    talk = Conversation((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    ids, _ = row_of(tokenizer, talk)
    first, second = [place for place, token in enumerate(ids) if token == END][1::2]
    for length in range(1, len(ids) + 1):
        ((row,),) = encode_batch([talk], tokenizer, rules(max_length=length))
        assert (row.turns, row.turns_cut) == ((length > first) + (length > second), 2 - row.turns)
        ((row,),) = encode_batch([talk], tokenizer, rules(LossTarget.last_turn, length))
        assert (row.turns, row.turns_cut) == (int(length > second), int(length <= second))
        assert row.full_length == len(ids)
        assert row.cut == (length < len(ids))


def test_a_long_row_is_dropped_on_request(tokenizer):
    long, short = TALKS[1], TALKS[0]
    examples = [Conversation(tuple(long)), Conversation(tuple(short)), Text("the " * 30), Text("ok")]
    size = len(row_of(tokenizer, examples[1])[0])
    rows = encode_batch(examples, tokenizer, rules(max_length=size, on_long_row=OnLongRow.drop))
    assert [len(row) for row in rows] == [0, 1, 0, 1]
    assert rows[1][0].full_length == size


def test_a_batch_is_the_rows_one_by_one(tokenizer):
    examples = [Conversation(tuple(turns)) for turns in TALKS] + [Text("Hi"), Text("ok")]
    rows = encode_batch(examples, tokenizer, rules(LossTarget.last_turn, 40))
    assert [(row.input_ids.tolist(), row.labels.tolist()) for (row,) in rows] == [
        row_of(tokenizer, one, LossTarget.last_turn, 40) for one in examples
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


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("max_length", [8, 60, 150, 400])
def test_split_rows_hold_every_exchange_once_and_as_many_as_fit(tokenizer, system, max_length):
    for told, turns in make_talks(12, system=system, exchanges=7):
        talk = Conversation(tuple(turns), told)
        whole = [row_of(tokenizer, _some(talk, n, n + 1), LossTarget.all)[0] for n in range(len(turns) // 2)]
        (rows,) = encode_batch([talk], tokenizer, rules(max_length=max_length, on_long_row=OnLongRow.split))
        start = 0
        for row in rows:
            stop = start + 1
            while stop < len(whole) and len(row_of(tokenizer, _some(talk, start, stop + 1))[0]) <= max_length:
                stop += 1
            ids, labels = row_of(tokenizer, _some(talk, start, stop))
            assert row.input_ids.tolist() == ids[:max_length]
            assert row.labels.tolist() == labels[:max_length]
            assert row.full_length == len(ids)
            assert row.cut == (stop == start + 1 and len(whole[start]) > max_length)
            start = stop
        assert start == len(whole)


def _some(talk, start, stop):
    return Conversation(talk.messages[2 * start : 2 * stop], talk.system)


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("max_length", [8, 60, 150, 400])
def test_a_split_for_the_last_turn_keeps_the_exchanges_before_it_that_fit(tokenizer, system, max_length):
    for told, turns in make_talks(12, system=system, exchanges=7):
        talk = Conversation(tuple(turns), told)
        number = len(turns) // 2
        ((row,),) = encode_batch(
            [talk], tokenizer, rules(LossTarget.last_turn, max_length, on_long_row=OnLongRow.split)
        )
        tails = [row_of(tokenizer, _some(talk, n, number), LossTarget.last_turn) for n in range(number)]
        ids, labels = next((tail for tail in tails if len(tail[0]) <= max_length), tails[-1])
        assert row.input_ids.tolist() == ids[:max_length]
        assert row.labels.tolist() == labels[:max_length]


@pytest.mark.parametrize("max_length", [2, 3, 8, 20, 1000])
def test_a_split_text_is_the_whole_text_with_one_end(tokenizer, max_length):
    for words in ("ok", "Hi the model " * 9, "a" * 13, "a" * 14, "a" * 15):
        (rows,) = encode_batch(
            [Text(words)], tokenizer, rules(max_length=max_length, on_long_row=OnLongRow.split)
        )
        whole, _ = row_of(tokenizer, Text(words))
        pieces = [row.input_ids.tolist() for row in rows]
        assert [token for piece in pieces for token in piece[1:]] == whole[1:]
        assert all(piece[0] == 2 and len(piece) <= max_length for piece in pieces)
        assert [piece.count(1) for piece in pieces] == [0] * (len(pieces) - 1) + [1]
        assert max_length == 2 or len(pieces[-1]) > 2 or len(whole) == 3
        assert all(row.labels.tolist() == [NOT_LEARNED, *row.input_ids.tolist()[1:]] for row in rows)
        assert not any(row.cut for row in rows)


@pytest.mark.parametrize("token", ["<bos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"])
def test_a_typed_control_token_is_found_wherever_it_stands(tokenizer, token):
    words = f"x{token}<eos>"
    places = [
        Text(words),
        Conversation((("user", "a"), ("assistant", "b")), system=words),
        Conversation((("user", words), ("assistant", "b"))),
        Conversation((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", words))),
    ]
    assert [find_control_token(place, tokenizer) for place in places] == [token] * 4
    assert find_control_token(Text("<end of turn> <start> <b>"), tokenizer) is None


def test_the_setting_of_the_tokenizers_threads_outlives_the_call(tokenizer, monkeypatch):
    for before in ("false", "true"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        encode_batch([Text("Hi")], tokenizer, rules())
        assert os.environ["TOKENIZERS_PARALLELISM"] == before
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    encode_batch([Text("Hi")], tokenizer, rules())
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"  # else a later fork warns


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_tokenising_is_silent_and_can_tokenise_too():
    code = """
import os, sys, warnings
sys.path.insert(0, sys.argv[1])
from data_tokenizer import build_tokenizer
from gemma_ft.config.dataset import LossTarget, OnLongRow, Trim
from gemma_ft.data.conversations.examples import Text
from gemma_ft.data.tokens.encoding import TokenRules, encode_batch
os.environ.pop("TOKENIZERS_PARALLELISM", None)
rules = TokenRules(loss_on=LossTarget.all, trim=Trim.template, on_long_row=OnLongRow.drop, max_length=9999)
tokenizer = build_tokenizer()
before = [len(rows) for rows in encode_batch([Text("Hi the model")] * 64, tokenizer, rules)]
child = os.fork()
if not child:
    os._exit([len(rows) for rows in encode_batch([Text("Hi the model")] * 64, tokenizer, rules)] != before)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
