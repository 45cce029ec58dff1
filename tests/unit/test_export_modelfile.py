"""The Modelfile writes turns as the chat template does."""

import re

import jinja2
import pytest
from data_tokenizer import build_tokenizer

from gemma_ft.exporting.folder.modelfile import build_modelfile
from gemma_ft.families import FAMILIES

MODELFILE = build_modelfile("./model.gguf", FAMILIES[0], ("<end_of_turn>", "<start_of_turn>"))

IN_JINJA = {
    "$system := .System": "% set state = namespace(system=System) %",
    "range .Messages": "% for message in Messages %",
    'if eq .Role "user"': "% if message.role == 'user' %",
    'else if eq .Role "assistant"': "% elif message.role == 'assistant' %",
    "if $system": "% if state.system %",
    "$system": "{ state.system }",
    '$system = ""': "% set state.system = '' %",
    ".Content": "{ message.content }",
}
"""The actions of Go's templates that are used, in Jinja's words; the dashes mean the same in both."""


def render_as_ollama(messages):
    """Expand the template as Ollama does: all system messages as one text, the others in their order."""
    source = re.search(r'TEMPLATE """(.*?)"""', MODELFILE, re.DOTALL)[1]
    opened = []

    def translate(action):
        before, words, after = re.fullmatch(r"\{\{(-?) ?(.*?) ?(-?)\}\}", action[0]).groups()
        if words == "end":
            jinja = f"% end{opened.pop()} %"
        else:
            jinja = IN_JINJA[words]
            if words.split()[0] in ("range", "if"):
                opened.append({"range": "for", "if": "if"}[words.split()[0]])
        return "{" + jinja[0] + before + jinja[1:-1] + after + jinja[-1] + "}"

    template = re.sub(r"\{\{.*?\}\}", translate, source)
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    environment = jinja2.Environment(keep_trailing_newline=True)
    return environment.from_string(template).render(System=system, Messages=messages)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be kind.\nBe brief."}]])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_ollama_writes_turns_as_the_chat_template_does(system, count):
    roles = ["user", "assistant"] * count
    turns = [{"role": roles[i], "content": f"words {i}\n\nmore"} for i in range(count)]
    expected = build_tokenizer().apply_chat_template(
        [*system, *turns], tokenize=False, add_generation_prompt=True
    )
    assert "<bos>" + render_as_ollama([*system, *turns]) == expected


def test_weights_and_stops_are_named():
    lines = MODELFILE.splitlines()
    assert lines[:2] == ["# Gemma 1. To use it, in this folder: ollama create NAME", "FROM ./model.gguf"]
    assert lines[-2:] == ['PARAMETER stop "<end_of_turn>"', 'PARAMETER stop "<start_of_turn>"']
    assert "FROM .\n" in build_modelfile(".", FAMILIES[2], ())
    assert MODELFILE.endswith('"\n')


def test_template_is_the_text_that_was_read_over_once():
    assert (
        """TEMPLATE \"\"\"{{- $system := .System }}
{{- range .Messages }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $system }}{{ $system }}

{{ $system = "" }}{{ end }}{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
\"\"\"
"""
        in MODELFILE
    )
