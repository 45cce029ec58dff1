import json
import pickle

import pytest

from gemma_ft.config.rows import ColumnsConfig
from gemma_ft.data.conversations.examples import Conversation, Text, build_example, build_prompt, fold_system
from gemma_ft.data.conversations.shapes import unused_columns
from gemma_ft.data.sources.rows import Row, RowError

TWO = Conversation((("user", "Hi"), ("assistant", "Hello")))


def example(**values):
    return build_example(Row("train.jsonl:417", values))


def mapped(values, prefix="dataset", **names):
    return build_example(Row("train.jsonl:417", values), ColumnsConfig(**names), prefix)


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
        {"messages": chat(("system", " \n"), ("user", "Hi"), ("assistant", "Hello"))},
        {"messages": chat(("system", None), ("user", "Hi"), ("assistant", "Hello"))},
        {"messages": json.dumps(chat(("user", "Hi"), ("assistant", "Hello")))},
        {"data": ' ["Hi", "Hello"]'},
        {"instruction": "Hi", "input": " \n", "output": "Hello"},
        {"data": "2024-01-01", "prompt": "Hi", "completion": "Hello"},
        {"text": "", "prompt": "Hi", "completion": "Hello"},
        {
            "messages": [
                {"from": "human", "value": "?", **turn} for turn in chat(("user", "Hi"), ("gpt", "Hello"))
            ]
        },
        {
            "messages": [
                {"role": None, "content": None, "from": "human", "value": "Hi"},
                {"role": "assistant", "content": "Hello", "from": None, "value": None},
            ]
        },
        {
            "messages": [
                {**turn, "name": "x", "tool_calls": None} for turn in chat(("user", "Hi"), ("gpt", "Hello"))
            ]
        },
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


def test_a_system_message_stands_apart_and_opens_the_first_user_turn_when_it_is_folded():
    built = example(messages=chat(("system", " Be brief. "), ("user", " Hi"), ("assistant", "\tHello")))
    assert built == Conversation((("user", " Hi"), ("assistant", "\tHello")), system=" Be brief. ")
    assert fold_system(built) == (("user", "Be brief.\n\nHi"), ("assistant", "\tHello"))
    assert fold_system(TWO) == TWO.messages


def test_texts_are_kept_as_they_are():
    assert example(data=[" Hi ", "\tdef f():\n"]).messages == (
        ("user", " Hi "),
        ("assistant", "\tdef f():\n"),
    )


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"q": "Hi", "a": "Hello"}, {"prompt": "q", "completion": "a"}),
        ({"prompt": "Hi", "answer": "Hello"}, {"completion": "answer"}),
        ({"text": "no", "messages": [], "q": "Hi", "a": "Hello"}, {"prompt": "q", "completion": "a"}),
        ({"prompt": "Hi", "completion": "Hello", "messages": []}, {"prompt": "prompt"}),
        ({"task": "Hi", "context": None, "output": "Hello"}, {"instruction": "task", "input": "context"}),
        ({"task": "Hi", "output": "Hello"}, {"instruction": "task"}),
        ({"dialog": ["Hi", "Hello"]}, {"messages": "dialog"}),
        ({"dialog": chat(("user", "Hi"), ("gpt", "Hello")), "messages": "x"}, {"messages": "dialog"}),
        (
            {"messages": [{"speaker": "user", "words": "Hi"}, {"speaker": "model", "words": "Hello"}]},
            {"role": "speaker", "content": "words"},
        ),
        (
            {"conversations": [{"speaker": "user", "value": "Hi"}, {"speaker": "model", "value": "Hello"}]},
            {"role": "speaker"},
        ),
        (
            {"messages": [{"role": "user", "text": "Hi"}, {"role": "gpt", "text": "Hello"}]},
            {"content": "text"},
        ),
        ({"messages": chat(("client", "Hi"), ("Agent", "Hello"))}, {"user": "client", "assistant": "Agent"}),
        (
            {"messages": chat(("assistant", "Hi"), ("bot", "Hello"))},
            {"user": "assistant", "assistant": "bot"},
        ),
    ],
)
def test_columns_turns_and_roles_of_other_names_are_read_by_the_names_that_were_given(values, names):
    assert mapped(values, **names) == TWO


def test_input_of_another_name_follows_the_instruction():
    built = mapped({"task": "Add", "context": "1, 2", "output": "3"}, instruction="task", input="context")
    assert built == Conversation((("user", "Add\n\n1, 2"), ("assistant", "3")))
    assert mapped({"body": "once"}, text="body") == Text("once")
    assert mapped({"said": "Be.", "by": "Oscar"}, quote="said", author="by") == Text(
        "Quote: Be.\nAuthor: Oscar"
    )


def test_rows_of_two_shapes_are_told_apart_by_the_named_columns_that_they_have():
    names = {"prompt": "q", "completion": "a", "text": "body"}
    assert mapped({"q": "Hi", "a": "Hello", "body": None}, **names) == TWO
    assert mapped({"q": None, "a": None, "body": "once"}, **names) == Text("once")
    assert mapped({"body": "once"}, **names) == Text("once")


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (
            {"Question": "Hi", "a": "Hello"},
            {"prompt": "question", "completion": "a"},
            r"dataset\.columns\.prompt=question is not among the columns \(Question, a\)\. Did you mean Ques",
        ),
        (
            {"prompt": "Hi", "completion": "Hello"},
            {"prompt": "zz"},
            r"dataset\.columns\.prompt=zz is not among the columns \(prompt, completion\)\. Name one",
        ),
        (
            {"q": "Hi", "answer": "Hello"},
            {"prompt": "q"},
            r"dataset\.columns\.prompt=q needs completion beside, which is not among the columns \(q, "
            r"answer\)\. Name yours: dataset\.columns\.completion=\.\.\.",
        ),
        (
            {"instruction": "Hi", "output": "Hello"},
            {"input": "context"},
            r"dataset\.columns\.input=context is not among the columns",
        ),
        ({"q": None, "a": "x"}, {"prompt": "q", "completion": "a"}, "null where text must stand in column q"),
        ({"body": " "}, {"text": "body"}, r"empty text \(only white space\) in column body"),
        ({"dialog": ["Hi"]}, {"messages": "dialog"}, "ends with the user's turn"),
        (
            {"messages": chat(("user", "Hi"), ("assistant", "Hello"))},
            {"role": "speaker"},
            r"a turn without role and content in turn 1 \(it has role, content\)\. "
            "Give it speaker and content, or speaker and value",
        ),
        (
            {"messages": chat(("Client", "Hi"), ("assistant", "Hello"))},
            {"user": "client"},
            "unknown role 'Client' in turn 1. Did you mean client",
        ),
        (
            {"messages": chat(("customer", "Hi"), ("assistant", "Hello"))},
            {"user": "client"},
            "unknown role 'customer' in turn 1. Use system, user, assistant or client, or name yours",
        ),
    ],
)
def test_a_named_column_that_does_not_fit_names_its_key(values, names, message):
    with pytest.raises(RowError, match=f"^train.jsonl:417: {message}"):
        mapped(values, **names)
    with pytest.raises(RowError, match=r"^train.jsonl:417: dataset\.mixture\.a\.columns\.text=body is not"):
        mapped({"x": "y"}, "dataset.mixture.a", text="body")


TURNS = {
    "two user turns in a row. Join them or remove one.": [("user", "a"), ("user", "b"), ("assistant", "c")],
    "two assistant turns in a row. Join them or remove one.": [
        ("user", "a"),
        ("assistant", "b"),
        ("assistant", "c"),
    ],
    "begins with an assistant turn. Begin with the user's.": [("assistant", "a"), ("user", "b")],
    "ends with the user's turn. The last turn must be the assistant's.": [("user", "a")],
    "a system message after the start. Only the first message may be one.": [
        ("user", "a"),
        ("system", "b"),
        ("assistant", "c"),
    ],
    "two system messages. Join them.": [("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")],
    "a system message and no turns. Add some or remove the row.": [("system", "a")],
    "no turns. Add some or remove the row.": [("system", "")],
    "empty text in turn 1. Fill it or remove the row.": [("user", ""), ("assistant", "b")],
    "empty text (only white space) in turn 2. Fill it or remove the row.": [
        ("user", "a"),
        ("assistant", " \n"),
    ],
    "null where text must stand in turn 2. Correct or remove the row.": [("user", "a"), ("assistant", None)],
    "a whole number where text must stand in turn 2. Correct or remove the row.": [
        ("user", "a"),
        ("assistant", 3),
    ],
    "a number where text must stand in turn 1. Correct or remove the row.": [("user", 0.5)],
    "NaN where text must stand in turn 1. Correct or remove the row.": [("user", float("nan"))],
    "true/false where text must stand in turn 1. Correct or remove the row.": [("user", True)],
    "bytes where text must stand in turn 1. Correct or remove the row.": [("user", b"Hi")],
    "an object where text must stand in turn 2. Correct or remove the row.": [
        ("user", "a"),
        ("assistant", {"text": "b"}),
    ],
    "a part that is no text (type image) in turn 1. Only parts of type text can be learned.": [
        ("user", [{"type": "text", "text": "a"}, {"type": "image", "url": "x"}])
    ],
    "a list of texts where text must stand in turn 1. Join them to one.": [("user", ["a"])],
    "a part that is no text (null as its text) in turn 1. Only parts of type text can be learned.": [
        ("user", [{"type": "text", "text": None}])
    ],
    "empty text in turn 2. Fill it or remove the row.": [("user", "a"), ("assistant", [])],
    "unknown role 'developer' in turn 1. Use system, user or assistant, or name yours in columns.user and "
    "columns.assistant.": [("developer", "a")],
    "unknown role 'User' in turn 1. Did you mean user?": [("User", "a"), ("assistant", "b")],
    "unknown role 'assistant ' in turn 2. Did you mean assistant?": [("user", "a"), ("assistant ", "b")],
    "unknown role '\\n\\ud800' in turn 1. Use system, user or assistant, or name yours in columns.user and "
    "columns.assistant.": [("\n\ud800", "a")],
    "null where a role must stand in turn 1. Correct or remove the row.": [(None, "a")],
    "a list where a role must stand in turn 1. Correct or remove the row.": [(["user"], "a")],
    "a tool's role 'tool' in turn 2. Gemma's turns know no tools: write them as user and assistant, or "
    "remove the row.": [("user", "a"), ("tool", "b")],
    "half a character (a lone surrogate) at character 3 in turn 2. Write the file again.": [
        ("user", "a"),
        ("assistant", "\u4e2d!\ud83d"),
    ],
}


@pytest.mark.parametrize("line", TURNS)
def test_a_wrong_turn_is_named_with_its_row(line):
    with pytest.raises(RowError) as caught:
        example(messages=chat(*TURNS[line]))
    assert str(caught.value) == f"train.jsonl:417: {line}"
    assert caught.value.where == "train.jsonl:417"


COLUMNS = {
    "null where a list of turns must stand in column messages. Correct or remove the row.": {
        "messages": None
    },
    "text where a list of turns must stand in column messages. Correct or remove the row.": {
        "messages": "Hi"
    },
    "an object where a list of turns must stand in column conversations. Correct or remove the row.": {
        "conversations": {"role": "user"}
    },
    "an empty list in column messages. Fill it or remove the row.": {"messages": "[]"},
    "an empty list in column data. Fill it or remove the row.": {"data": []},
    "column messages holds no JSON (Expecting property name enclosed in double quotes, column 3). It is "
    "Python; write it with json.dumps.": {"messages": "[{'role': 'user', 'content': 'Hi'}]"},
    "column messages holds a key that stands twice (role). Remove one of them.": {
        "messages": '[{"role": "user", "role": "gpt"}]'
    },
    "text where a turn must stand in turn 1. Give it role and content.": {"messages": ["Hi"]},
    "null where a turn must stand in turn 2. Give it role and content.": {
        "messages": [*chat(("user", "a")), None]
    },
    "a turn without role and content in turn 1 (it has role, text). Give it role and content, or from and "
    "value.": {"messages": [{"role": "user", "text": "a"}]},
    "a turn without role and content in turn 1 (it has from, content). Give it role and content, or from and "
    "value.": {"conversations": [{"from": "human", "content": "a"}]},
    "a turn without role and content in turn 1 (it has nothing). Give it role and content, or from and "
    "value.": {"messages": [{}]},
    "a tool call in turn 2. Gemma's turns know no tools: write them as user and assistant, or remove the "
    "row.": {
        "messages": [
            *chat(("user", "a")),
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        ]
    },
    "empty text in turn 2. Fill it or remove the row.": {"data": ["Hi", ""]},
    "an object where text must stand in turn 1. Correct or remove the row.": {"data": chat(("user", "a"))},
    "ends with the user's turn. The last turn must be the assistant's.": {"data": ["Hi"]},
    "empty text in column completion. Fill it or remove the row.": {"prompt": "Hi", "completion": ""},
    "null where text must stand in column prompt. Correct or remove the row.": {
        "prompt": None,
        "completion": "a",
    },
    "begins with an assistant turn. Begin with the user's.": {
        "prompt": chat(("assistant", "a")),
        "completion": "b",
    },
    "unknown role 'x' in turn 1 of completion. Use system, user or assistant, or name yours in columns.user "
    "and columns.assistant.": {"prompt": "a", "completion": chat(("x", "b"))},
    "a whole number where text must stand in column input. Correct or remove the row.": {
        "instruction": "Hi",
        "input": 3,
        "output": "x",
    },
    "true/false where text must stand in column text. Correct or remove the row.": {"text": True},
    "null where text must stand in column author. Correct or remove the row.": {"quote": "a", "author": None},
}


@pytest.mark.parametrize("line", COLUMNS)
def test_a_wrong_column_is_named_with_its_row(line):
    with pytest.raises(RowError) as caught:
        example(**COLUMNS[line])
    assert str(caught.value) == f"train.jsonl:417: {line}"
    assert caught.value.where == "train.jsonl:417"


RENAME = "Name them with dataset.columns.*, or rename them to one of"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (["question", "answer"], f"no known shape in columns question, answer. {RENAME}"),
        ([], f"no known shape in an object without columns. {RENAME}"),
        (
            ["Prompt", " completion"],
            "no known shape in columns Prompt,  completion. Rename Prompt to prompt. The shapes want",
        ),
        (
            [str(number) for number in range(20)],
            f"no known shape in columns 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more. {RENAME}",
        ),
        (["x" * 70, "a\nb"], f"no known shape in columns {'x' * 57}..., a\\nb. {RENAME}"),
    ],
)
def test_an_unknown_shape_names_the_columns_seen_and_those_each_shape_wants(columns, line):
    known = "messages | conversations | data | prompt, completion | instruction, output, [input] | text"
    with pytest.raises(RowError) as caught:
        example(**dict.fromkeys(columns, "x"))
    assert str(caught.value) == f"train.jsonl:417: {line}: {known} | quote, author."
    assert caught.value.cause == "no known shape"


def test_the_same_kind_of_fault_has_the_same_cause_whatever_its_numbers_and_names():
    causes = set()
    for number in range(3):
        turns = chat(
            *[("user", "a"), ("assistant", "b")] * number, ("user", f"{number}"), (f"role {number}", "b")
        )
        with pytest.raises(RowError) as caught:
            example(messages=turns)
        causes.add(caught.value.cause)
    assert causes == {"unknown role"}


def test_the_fault_of_a_row_survives_the_way_between_processes():
    with pytest.raises(RowError) as caught:
        example(text="")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.where, again.cause) == (
        "train.jsonl:417: empty text in column text. Fill it or remove the row.",
        "train.jsonl:417",
        "empty text",
    )


def test_a_prompt_ends_with_the_user():
    assert build_prompt(chat(("system", "Be brief."), ("user", "Hi"))) == (("user", "Be brief.\n\nHi"),)
    with pytest.raises(
        RowError, match=r"prompt: ends with the assistant's turn\. The last turn must be the user's"
    ):
        build_prompt(chat(("user", "Hi"), ("assistant", "Hello")))


@pytest.mark.parametrize(
    "values",
    [
        {"messages": chat(("user", "Hi"), ("assistant", "Hello")), "system": "Be brief."},
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            "system": "Be brief.",
        },
        {"data": ["Hi", "Hello"], "system": "Be brief."},
        {"prompt": "Hi", "completion": "Hello", "system": "Be brief."},
        {"instruction": "Hi", "output": "Hello", "system": "Be brief."},
        {"messages": chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")), "system": ""},
        {"messages": chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")), "system": None},
    ],
)
def test_a_column_of_a_system_message_stands_before_the_turns(values):
    assert example(**values) == Conversation(TWO.messages, "Be brief.")


def test_the_column_of_a_system_message_can_be_named():
    row = Row("x:1", {"conversations": chat(("user", "Hi"), ("assistant", "Hello")), "persona": "Be brief."})
    assert build_example(row, ColumnsConfig(system="persona")) == Conversation(TWO.messages, "Be brief.")
    with pytest.raises(RowError, match=r"x:1: dataset\.columns\.system=pirate is not among the columns"):
        build_example(row, ColumnsConfig(system="pirate"))


def test_a_system_message_in_its_column_and_among_the_turns_is_two():
    with pytest.raises(RowError, match=r"two system messages\. Join them\."):
        example(messages=chat(("system", "a"), ("user", "b"), ("assistant", "c")), system="d")


def test_columns_that_are_not_read_are_listed():
    values = {"id": 7, "instruction": "a", "input": "b", "output": "c", "system": "", "score": float("nan")}
    assert unused_columns(Row("x:1", values), None, "dataset") == ["id", "score"]
