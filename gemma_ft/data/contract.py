"""The checks that Gemma's token contract is kept, by the tokenizer and by each row."""

from typing import TYPE_CHECKING

from gemma_ft import families
from gemma_ft.config.dataset import LossTarget
from gemma_ft.data.conversations import Conversation
from gemma_ft.data.tokens import encode
from gemma_ft.data.turns import control_ids, encode_texts
from gemma_ft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SAMPLE = "Is it  so?\n\n1. \u00e9\u4e2d \U0001f600"


def check_tokenizer(tokenizer: "PreTrainedTokenizerFast", where: str) -> None:
    """Refuse a tokenizer that cannot keep Gemma's token contract.

    Args:
        tokenizer: The tokenizer.
        where: The value of `model.path`, for the message.

    Raises:
        ModelError: A control token is missing, split, or recognised where it was typed; padding is end of
            text; or the ids of the turns differ from those of the rendered template.
    """
    fault = _tokenizer_fault(tokenizer)
    if fault:
        raise ModelError(
            f"model.path={where} has a tokenizer {fault}. Use the tokenizer of a Gemma checkpoint."
        )


def _tokenizer_fault(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    ids = control_ids(tokenizer)
    for token, token_id in ids.items():
        if tokenizer.backend_tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            return f"without {token} as one token"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        return f"that pads with {tokenizer.pad_token or 'nothing'}, where it must be <pad>"
    (typed,) = encode_texts([" ".join(ids)], tokenizer)
    if not set(typed).isdisjoint(ids.values()):
        return "that takes control tokens typed in a text for real ones"
    rendered = (
        f"{families.BOS}{families.START_OF_TURN}{families.USER_HEADER}{_SAMPLE}{families.END_OF_TURN}\n"
        f"{families.START_OF_TURN}{families.MODEL_HEADER}{_SAMPLE}{families.END_OF_TURN}\n"
    )
    whole = tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False).ids
    sample = Conversation((("user", _SAMPLE), ("assistant", _SAMPLE)))
    if encode(sample, tokenizer, LossTarget.all, len(whole) + 1)[0] != whole:
        return "that changes the text beside control tokens"
    return None
