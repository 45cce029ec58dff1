"""The checks that Gemma's token contract is kept: by the tokenizer, by its template, by each row."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gemma_ft import families
from gemma_ft.config.dataset import Trim
from gemma_ft.data.conversations.examples import Conversation, Example, fold_system
from gemma_ft.data.tokens.clauses import find_breaches
from gemma_ft.data.tokens.encoding import TokenRules, encode, find_control_token, prompt_ids
from gemma_ft.data.tokens.turns import control_ids, encode_texts
from gemma_ft.errors import DataError, ModelError, first_line

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

_QUESTION = "  Is it  so?\n\n1. \u00e9\u4e2d \U0001f600\r\n"
_ANSWER = "\n\tif so:\n    \t\u00a0return '#'  \n"
_SAMPLE = Conversation((("user", _QUESTION), ("assistant", _ANSWER), ("user", "Why?"), ("assistant", "So.")))
_SAMPLED_ROWS = 64
_TEMPLATE = "a chat template"
_DEPARTURE = "the spaces and tabs right before an answer's first word are kept, where the template trims them"


def check_tokenizer(tokenizer: "PreTrainedTokenizerFast", where: str, family: families.Family) -> None:
    """Refuse a tokenizer that cannot keep Gemma's token contract.

    Args:
        tokenizer: The tokenizer.
        where: The value of `model.path`, for the message.
        family: The checkpoint's generation, which says the ids of the turns.

    Raises:
        ModelError: A control token is missing, split, not where the family has it, or recognised where it was
            typed; padding ends something; or the ids of the turns differ from those of the chat template.
    """
    if fault := find_fault(tokenizer, family):
        mend = (
            "Take it out of the tokenizer's files, so that Gemma's own is used"
            if fault.startswith(_TEMPLATE)
            else f"Use the tokenizer of a {family.name} checkpoint"
        )
        raise ModelError(f"model.path={where} has {fault}. {mend}.")


def find_fault(tokenizer: "PreTrainedTokenizerFast", family: families.Family) -> str | None:
    """Say, as a phrase, how a tokenizer or its chat template breaks the contract; None if they keep it."""
    if fault := _tokenizer_fault(tokenizer, family):
        return f"a tokenizer {fault}"
    if fault := _template_fault(tokenizer):
        return f"{_TEMPLATE} {fault}"
    return None


def _tokenizer_fault(tokenizer: "PreTrainedTokenizerFast", family: families.Family) -> str | None:
    ids = control_ids(tokenizer)
    for token, token_id in ids.items():
        if tokenizer.backend_tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            return f"without {token} as one token"
    expected = {
        families.BOS: families.BOS_ID,
        families.START_OF_TURN: family.start_of_turn_id,
        families.END_OF_TURN: family.end_of_turn_id,
    }
    for token, token_id in expected.items():
        if ids[token] != token_id:
            return f"with {token} at id {ids[token]}, where {family.name} has {token_id}"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *expected.values(), ids[families.EOS]):
        return f"that pads with {tokenizer.pad_token or 'nothing'}, where it must be {families.PAD}"
    (typed, newline) = encode_texts([" ".join(ids), "\n"], tokenizer)
    if not set(typed).isdisjoint(ids.values()):
        return "that takes control tokens typed in a text for real ones"
    text = _written_out(_SAMPLE)
    if encode(_SAMPLE, tokenizer) != tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
        return "that changes the text beside control tokens"
    if len(newline) != 1:
        return "without a line break as one token"
    return None


def _written_out(talk: Conversation) -> str:
    headers = {"user": families.USER_HEADER, "assistant": families.MODEL_HEADER}
    turns = (
        f"{families.START_OF_TURN}{headers[role]}{text.strip()}{families.END_OF_TURN}\n"
        for role, text in fold_system(talk)
    )
    return families.BOS + "".join(turns)


def _template_fault(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    from jinja2 import TemplateError

    question = fold_system(_SAMPLE)[:1]
    try:
        answered = _rendered_ids(tokenizer, fold_system(_SAMPLE))
        asked = _rendered_ids(tokenizer, question, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        return f"that cannot render a conversation ({first_line(error)})"
    if answered != encode(_SAMPLE, tokenizer):
        return "that does not render Gemma's turns"
    if asked != prompt_ids(tokenizer, _messages(question)):
        return "that does not begin the model's turn as Gemma's does"
    return None


def _messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def _rendered_ids(
    tokenizer: "PreTrainedTokenizerFast",
    turns: Iterable[tuple[str, str]],
    *,
    add_generation_prompt: bool = False,
) -> list[int]:
    """Tokenise what the tokenizer's own chat template renders, which is what serving does."""
    text = tokenizer.apply_chat_template(
        _messages(turns), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def sample_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash the ids of a fixed conversation as a tokenizer's own chat template renders it.

    Raises:
        Exception: Whatever the template raises.
    """
    return _sha256(_rendered_ids(tokenizer, _SAMPLE.messages))


def _sha256(ids: Sequence[int]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()


def describe_contract(
    tokenizer: "PreTrainedTokenizerFast", rules: TokenRules, examples: Iterable[tuple[str, Example]]
) -> dict[str, Any]:
    """State what was kept, proven on conversations of the data, for data.json.

    Args:
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        rules: How rows become tokens.
        examples: Places and examples, of which the first conversations are compared with what the chat
            template renders; those in which somebody typed a control token are not.

    Raises:
        DataError: A conversation gets other ids than the tokenizer's own chat template renders.
    """
    talks = [(where, example) for where, example in examples if isinstance(example, Conversation)]
    plain = [(where, talk) for where, talk in talks if find_control_token(talk, tokenizer) is None]
    digest = hashlib.sha256()
    for where, talk in plain[:_SAMPLED_ROWS]:
        ours = _sha256(encode(talk, tokenizer, Trim.template))
        if ours != _sha256(_rendered_ids(tokenizer, fold_system(talk))):
            raise DataError(
                f"{where}: its tokens are not those of the chat template, which is a fault of gemma_ft. "
                "Please report it with this row."
            )
        digest.update(bytes.fromhex(ours))
    ids = control_ids(tokenizer)
    return {
        "bos_token_id": ids[families.BOS],
        "eos_token_id": ids[families.EOS],
        "pad_token_id": tokenizer.pad_token_id,
        "start_of_turn_id": ids[families.START_OF_TURN],
        "end_of_turn_id": ids[families.END_OF_TURN],
        "departure": _DEPARTURE if rules.trim is Trim.keep_indent else None,
        "template_sha256": hashlib.sha256(str(tokenizer.chat_template).encode("utf-8")).hexdigest(),
        "sample_sha256": sample_sha256(tokenizer),
        "rows_compared": len(plain[:_SAMPLED_ROWS]),
        "rows_sha256": digest.hexdigest(),
    }


def check_rows(rows: "pyarrow.RecordBatch", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Check rows as they are stored, all at once.

    Args:
        rows: Columns input_ids, labels and where.
        tokenizer: The tokenizer that made them.

    Raises:
        DataError: A row breaks the contract, which is a fault of this program; the message names it.
    """
    import numpy as np

    lengths = _lengths(rows, "input_ids")
    unlike = (lengths == 0) | (lengths != _lengths(rows, "labels"))
    if unlike.any():
        raise _broken(rows, int(unlike.argmax()), "is empty, or has more labels than tokens")
    starts = np.cumsum(lengths) - lengths
    ids, labels = (rows.column(name).flatten().to_numpy() for name in ("input_ids", "labels"))
    for fault, tokens in find_breaches(ids, labels, starts, tokenizer).items():
        if len(tokens):
            raise _broken(rows, int(np.searchsorted(starts, tokens[0], "right")) - 1, fault)


def _broken(rows: "pyarrow.RecordBatch", row: int, fault: str) -> DataError:
    where = rows.column("where")[row].as_py()
    return DataError(
        f"{where}: its row {fault}, which is a fault of gemma_ft. Please report it with this row."
    )


def _lengths(rows: "pyarrow.RecordBatch", column: str) -> "NDArray[np.int32]":
    import numpy as np

    lengths: NDArray[np.int32] = np.diff(rows.column(column).offsets.to_numpy())
    return lengths
