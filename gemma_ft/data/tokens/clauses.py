"""The clauses of the token contract that can be read off the ids and labels of stored rows."""

from typing import TYPE_CHECKING

from gemma_ft import families
from gemma_ft.data.tokens.encoding import NOT_LEARNED
from gemma_ft.data.tokens.turns import control_ids, encode_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast


def find_breaches(
    ids: "NDArray[np.int32]",
    labels: "NDArray[np.int32]",
    starts: "NDArray[np.int64]",
    tokenizer: "PreTrainedTokenizerFast",
) -> "dict[str, NDArray[np.int64]]":
    """Look for tokens that break the contract, in all rows at once.

    Args:
        ids: The ids of all rows, one after the other.
        labels: Their labels.
        starts: Where each row starts; none is empty.
        tokenizer: The tokenizer that made them.

    Returns:
        For each clause, in words for a message, the places of the tokens that break it.
    """
    import numpy as np

    if not len(starts):
        return {}
    control = control_ids(tokenizer)
    header, (newline,) = encode_texts([families.MODEL_HEADER, "\n"], tokenizer)
    learned = labels != NOT_LEARNED
    changes = np.flatnonzero(learned[1:] != learned[:-1]) + 1
    changes = changes[~np.isin(changes, starts)]
    begins, stops = changes[learned[changes]], changes[~learned[changes]]
    begins = begins[~np.isin(begins, starts + 1)]  # plain text and loss_on=all are learned from BOS on
    closed = (ids[stops - 2] == control[families.END_OF_TURN]) & (ids[stops - 1] == newline)
    return {
        "has not one BOS, first": np.setxor1d(starts, np.flatnonzero(ids == control[families.BOS])),
        "holds padding": np.flatnonzero(ids == tokenizer.pad_token_id),
        "learns another token than it reads": np.flatnonzero(learned & (labels != ids)),
        "learns its BOS": starts[learned[starts]],
        "learns nothing": starts[~np.logical_or.reduceat(learned, starts)],
        "learns words that are not an answer's": begins[
            ~_in_answers(ids, begins, control[families.START_OF_TURN], header)
        ],
        "does not learn the end of a turn": stops[~closed],
    }


def _in_answers(
    ids: "NDArray[np.int32]", begins: "NDArray[np.int64]", start_of_turn: int, header: list[int]
) -> "NDArray[np.bool_]":
    """Say of each place whether it is the first of an assistant's answer, right behind the turn's head."""
    import numpy as np

    turns = np.flatnonzero(ids == start_of_turn)
    if not len(turns):
        return np.zeros(len(begins), np.bool_)
    turn = turns[np.searchsorted(turns, begins) - 1]
    ahead = begins - turn
    first: NDArray[np.bool_] = (ahead > 1) & (ahead <= 1 + len(header)) & (ids[turn + 1] == header[0])
    return first
