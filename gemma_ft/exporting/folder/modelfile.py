"""Ollama's Modelfile: where the weights are, how turns are written, and where an answer ends.

Ollama knows no Jinja. Its templates are Go's, over .System (all system messages as one text) and .Messages;
it puts <bos> before them itself, as the tokenizer says, so a template must not. It has no function that
trims a text, which is all that differs from the chat template.
"""

from collections.abc import Sequence

from gemma_ft.families import END_OF_TURN, MODEL_HEADER, START_OF_TURN, USER_HEADER, Family

_USER, _MODEL = START_OF_TURN + USER_HEADER, START_OF_TURN + MODEL_HEADER
_TEMPLATE = (
    "{{- $system := .System }}\n"
    "{{- range .Messages }}\n"
    '{{- if eq .Role "user" }}' + _USER + "{{ if $system }}{{ $system }}\n\n"
    '{{ $system = "" }}{{ end }}{{ .Content }}' + END_OF_TURN + "\n"
    '{{ else if eq .Role "assistant" }}' + _MODEL + "{{ .Content }}" + END_OF_TURN + "\n"
    "{{ end }}\n"
    "{{- end }}" + _MODEL
)


def build_modelfile(source: str, family: Family, stops: Sequence[str]) -> str:
    """Build a Modelfile.

    Args:
        source: What `FROM` names, relative to the Modelfile: a GGUF file, or `.` for a folder of safetensors.
        family: The model's family.
        stops: Texts that end an answer.
    """
    lines = [
        f"# {family.name}. To use it, in this folder: ollama create NAME",
        f"FROM {source}",
        f'TEMPLATE """{_TEMPLATE}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join([*lines, ""])
