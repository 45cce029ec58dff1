import pytest

from gemma_ft.data.conversations import Conversation, Text, build_example, build_prompt
from gemma_ft.data.rows import Row
from gemma_ft.errors import DataError

TWO = Conversation((("user", "Hi"), ("assistant", "Hello")))


def example(**values):
    return build_example(Row("train.jsonl:417", values))


def chat(*roles_and_texts):
    return [{"role": role, "content": text} for role, text in roles_and_texts]


@pytest.mark.parametrize(
    "values",
    [
        {"messages": chat(("user", "Hi"), ("assistant", "Hello"))},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "model", "value": "Hello"}]},
        {"conversations": chat(("user", "Hi"), ("assistant", "Hello"))},
        {"id": "7", "data": ["Hi", "Hello"]},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": chat(("user", "Hi")), "completion": chat(("assistant", "Hello"))},
        {"instruction": "Hi", "output": "Hello"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "input": None, "output": "Hello"},
        {"prompt": "ignored", "prompt_id": "x", "messages": chat(("user", "Hi"), ("assistant", "Hello"))},
        {"text": None, "messages": chat(("user", "Hi"), ("assistant", "Hello"))},
        {"messages": None, "prompt": "Hi", "completion": "Hello"},
        {"messages": chat(("system", ""), ("user", "Hi"), ("assistant", "Hello"))},
        {
            "messages": chat(
                ("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), ("gpt", "Hello")
            )
        },
    ],
)
def test_every_shape_of_one_conversation_is_the_same_conversation(values):
    assert example(**values) == TWO


def test_input_follows_the_instruction():
    built = example(instruction="Add", input="1, 2", output="3")
    assert built == Conversation((("user", "Add\n\n1, 2"), ("assistant", "3")))


def test_plain_text_and_quotes_are_texts():
    assert example(text="once") == Text("once")
    assert example(quote="\u201cBe.\u201d", author="Oscar", tags=["be"]) == Text(
        "Quote: \u201cBe.\u201d\nAuthor: Oscar"
    )


def test_a_system_message_opens_the_first_user_turn():
    built = example(messages=chat(("system", " Be brief. "), ("user", " Hi"), ("assistant", "Hello")))
    assert built == Conversation((("user", "Be brief.\n\nHi"), ("assistant", "Hello")))


def test_texts_are_kept_as_they_are():
    assert example(data=[" Hi ", "\tdef f():\n"]).messages == (
        ("user", " Hi "),
        ("assistant", "\tdef f():\n"),
    )


@pytest.mark.parametrize(
    ("turns", "cause"),
    [
        (
            [("user", "a"), ("user", "b"), ("assistant", "c")],
            r"two user turns in a row\. Join them or remove one\.",
        ),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "two assistant turns in a row"),
        ([("assistant", "a"), ("user", "b")], "begins with an assistant turn"),
        ([("user", "a")], "ends with the user's turn. The last turn must be the assistant's"),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "ends with the user's turn"),
        ([("user", "a"), ("system", "b"), ("assistant", "c")], "a system message after the start"),
        (
            [("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")],
            "no user turn after the system",
        ),
        ([("system", "a")], "no user turn after the system message"),
        ([("system", "")], "no turns"),
        ([("user", ""), ("assistant", "b")], "the content of turn 1 is empty"),
        ([("user", "a"), ("assistant", " \n")], "the content of turn 2 is empty"),
        ([("user", "a"), ("assistant", None)], "the content of turn 2 is null, not text"),
        ([("user", "a"), ("assistant", 3)], "the content of turn 2 is a number, not text"),
        ([("user", "a"), ("assistant", {"text": "b"})], "the content of turn 2 is a dict, not text"),
        (
            [("user", [{"type": "image", "url": "x"}]), ("assistant", "b")],
            "turn 1 has a part of type 'image'",
        ),
        ([("user", ["a"]), ("assistant", "b")], "turn 1 has a part of text. Only parts of type 'text'"),
        ([("user", []), ("assistant", "b")], "the content of turn 1 is empty"),
        (
            [("user", "a"), ("tool", "b")],
            r"turn 2 has the unknown role 'tool'\. Use system, user or assistant\.",
        ),
        ([("User", "a"), ("assistant", "b")], "turn 1 has the unknown role 'User'"),
        ([(None, "a"), ("assistant", "b")], "turn 1 has the unknown role None"),
        (
            [("user", "a"), ("assistant", "\ud83d!")],
            r"turn 2 holds half a character at position 1 \(a lone surrogate\)",
        ),
    ],
)
def test_a_wrong_turn_is_named_with_its_row(turns, cause):
    with pytest.raises(DataError, match=f"^train.jsonl:417: .*{cause}") as caught:
        example(messages=chat(*turns))
    assert str(caught.value).startswith("train.jsonl:417: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"messages": None}, "messages is null, not a list"),
        ({"messages": "[]"}, "messages is text, not a list"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["Hi"]}, "turn 1 is text, not an object with role and content"),
        (
            {"messages": [{"role": "user", "text": "a"}]},
            "turn 1 has role, text. Give it role and content, or from",
        ),
        ({"conversations": [{"from": "human", "content": "a"}]}, "turn 1 has from, content. Give it"),
        ({"data": ["Hi", ""]}, "turn 2 is empty"),
        ({"data": ["Hi", None]}, "turn 2 is null, not text"),
        ({"data": ["Hi"]}, "ends with the user's turn"),
        ({"data": "Hi"}, "data is text, not a list"),
        ({"prompt": "Hi", "completion": ""}, "completion is empty"),
        ({"prompt": None, "completion": "a"}, "prompt is null, not text"),
        ({"instruction": "Hi", "output": None}, "output is null, not text"),
        ({"instruction": "Hi", "input": 3, "output": "x"}, "input is a number, not text"),
        ({"text": ""}, "text is empty"),
        ({"text": True}, "text is a truth value, not text"),
        ({"quote": "a", "author": None}, "author is null, not text"),
    ],
)
def test_a_wrong_column_is_named_with_its_row(values, cause):
    with pytest.raises(DataError, match=f"^train.jsonl:417: {cause}"):
        example(**values)


def test_an_unknown_shape_names_the_columns_seen_and_those_each_shape_wants():
    with pytest.raises(
        DataError, match=r"^train\.jsonl:417: columns question, answer fit no known shape\."
    ) as caught:
        example(question="a", answer="b")
    assert str(caught.value).endswith(
        "Rename them to one of: messages | conversations | data | prompt, completion | "
        "instruction, output, [input] | text | quote, author."
    )
    with pytest.raises(DataError, match="columns none fit no known shape"):
        example()


def test_a_prompt_ends_with_the_user():
    assert build_prompt(chat(("system", "Be brief."), ("user", "Hi"))) == (("user", "Be brief.\n\nHi"),)
    with pytest.raises(
        DataError, match=r"prompt: ends with the assistant's turn\. The last turn must be the user's"
    ):
        build_prompt(chat(("user", "Hi"), ("assistant", "Hello")))
