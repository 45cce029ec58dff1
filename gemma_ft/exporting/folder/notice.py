"""NOTICE and the words about the licence: whose terms hold, and what was modified, from what, when."""

from typing import TYPE_CHECKING

from gemma_ft.families import Family

if TYPE_CHECKING:
    from gemma_ft.exporting.folder.card import Origin

_BUNDLED = (
    "The base is bundled:tiny, random weights that gemma_ft makes from a seed on the machine itself.",
    "Nothing of Google's Gemma is in it but the shape, so Gemma's terms are not passed on with it.",
)


def license_lines(family: Family, origin: "Origin") -> list[str]:
    """Word the section about the licence of a model card."""
    if origin.bundled:
        return [*_BUNDLED, "What was modified: see NOTICE."]
    return [f"{family.notice}.", f"The terms: <{family.license_url}>. What was modified: see NOTICE."]


def build_notice(
    family: Family, origin: "Origin", *, template_added: bool, tokenizer_rewritten: bool = False
) -> str:
    """Build NOTICE of a merged checkpoint.

    Args:
        family: The base's family.
        origin: Where the checkpoint comes from.
        template_added: Whether the base's tokenizer had no chat template.
        tokenizer_rewritten: Whether a file of the tokenizer had to be rewritten.
    """
    merged = f",\nmerged into {origin.merged_onto}" if origin.adapter != "none" else ""
    lines = [
        *_terms(family, origin),
        f"The weights were modified by fine-tuning {origin.base_words}:",
        f"run {origin.name}, {origin.method_words}{merged}, exported on {origin.day}.",
        "config.json and generation_config.json were rewritten.",
        *_tokenizer_lines(template_added, tokenizer_rewritten),
    ]
    return "\n".join([*lines, ""])


def build_adapter_notice(
    family: Family, origin: "Origin", *, template_added: bool, tokenizer_rewritten: bool = False
) -> str:
    """Build NOTICE of an adapter; the arguments are those of `build_notice`."""
    lines = [
        *_terms(family, origin),
        f"This adapter was trained on {origin.base_words}, which it changes when it is loaded:",
        f"run {origin.name}, {origin.method_words}, exported on {origin.day}.",
        "The base's other weights are not in this folder.",
        *_tokenizer_lines(template_added, tokenizer_rewritten),
    ]
    return "\n".join([*lines, ""])


def _terms(family: Family, origin: "Origin") -> list[str]:
    if origin.bundled:
        return [*_BUNDLED, "", "Modifications"]
    return [
        family.notice,
        "",
        f"The terms: {family.license_url}",
        "Their use restrictions apply to this model and to whatever is derived from it, and have to be",
        "passed on with it.",
        "",
        "Modifications",
    ]


def _tokenizer_lines(template_added: bool, tokenizer_rewritten: bool) -> list[str]:
    lines = ["The tokenizer's files are unchanged copies."]
    if tokenizer_rewritten:
        lines = [
            "In the tokenizer's files the turn tokens were listed as special tokens, in the spelling that",
            "every version of transformers reads; nothing else in them was changed.",
        ]
    if template_added:
        lines.append("A chat template (chat_template.jinja) was added; the tokenizer had none.")
    return lines
