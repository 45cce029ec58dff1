"""Gemma's token contract: which ids an example becomes, which of them are learned, and where a row ends."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from gemma_ft import families
from gemma_ft.config.dataset import DatasetConfig, LossTarget, OnLongRow, Trim
from gemma_ft.data.conversations.examples import Conversation, Example, Text, build_prompt, fold_system
from gemma_ft.data.tokens.splitting import last_turns, split_text, split_turns
from gemma_ft.data.tokens.turns import EncodedTurn, control_ids, encode_texts, encode_turns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

NOT_LEARNED = -100
"""Label of a token that is not in the loss, in torch's convention."""

_UNBOUNDED = 1 << 62


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRules:
    """How an example becomes rows of tokens."""

    loss_on: LossTarget
    """Which turns of a conversation are learned."""
    trim: Trim
    """What is cut from the ends of an answer."""
    on_long_row: OnLongRow
    """What becomes of an example of more than max_length tokens."""
    max_length: int
    """Most tokens of a row."""

    @classmethod
    def of(cls, dataset: DatasetConfig, max_length: int) -> Self:
        """Take the rules from the `dataset` section."""
        return cls(
            loss_on=dataset.loss_on,
            trim=dataset.trim,
            on_long_row=dataset.on_long_row,
            max_length=max_length,
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model sees it."""

    input_ids: "NDArray[np.int32]"
    labels: "NDArray[np.int32]"
    """The same ids where they are learned, else NOT_LEARNED."""
    full_length: int
    """Tokens of the row before it was cut."""
    turns: int
    """Learned assistant turns whose <end_of_turn> is in the loss."""
    turns_cut: int
    """Learned assistant turns that lost their end, or all of themselves, to the cut."""

    @property
    def trained(self) -> int:
        """Count the tokens in the loss."""
        return int((self.labels != NOT_LEARNED).sum())

    @property
    def cut(self) -> bool:
        """Say whether the row lost its end."""
        return self.full_length > len(self.input_ids)


def encode_batch(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerFast", rules: TokenRules
) -> list[list[Encoded]]:
    """Turn examples into rows of token ids and labels.

    A conversation gets the ids of Gemma's whole rendered template. Control tokens are put as ids; those that
    somebody typed into a text stay ordinary text. Plain text stands between BOS and EOS and is learned whole.
    BOS is never learned, since nothing predicts it.

    Args:
        examples: Conversations and plain texts.
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        rules: What is learned, and what becomes of a long example.

    Returns:
        The rows of each example: one, none when it is dropped as too long, several when it is split. A row
        whose learned turns were all cut off is given too, with nothing in the loss.
    """
    layout = _Layout(tokenizer, rules)
    talks = [example for example in examples if isinstance(example, Conversation)]
    texts = iter(encode_texts([example.text for example in examples if isinstance(example, Text)], tokenizer))
    turns = iter(_parts(talks, tokenizer, rules))
    return [
        layout.of_text(next(texts)) if isinstance(example, Text) else layout.of_parts(next(turns))
        for example in examples
    ]


def _parts(
    talks: Sequence[Conversation], tokenizer: "PreTrainedTokenizerFast", rules: TokenRules
) -> list[list[list[EncodedTurn]]]:
    """Tokenise conversations, each as the turns of its rows."""
    encoded = encode_turns([fold_system(talk) for talk in talks], tokenizer, rules.trim)
    parts = [[turns] for turns in encoded]
    if rules.on_long_row is not OnLongRow.split:
        return parts
    room = rules.max_length - 1  # for BOS
    long = [n for n, turns in enumerate(encoded) if sum(len(turn.ids) for turn in turns) > room]
    told = [n for n in long if talks[n].system]
    begun = encode_turns([_openings(talks[n]) for n in told], tokenizer, rules.trim)
    openings = dict(zip(told, begun, strict=True))
    for n in long:
        opened = openings.get(n, encoded[n][::2])
        if rules.loss_on is LossTarget.last_turn:
            parts[n] = [last_turns(encoded[n], opened, room)]
        else:
            parts[n] = split_turns(encoded[n], opened, room)
    return parts


def _openings(talk: Conversation) -> list[tuple[str, str]]:
    return [fold_system(Conversation((turn,), talk.system))[0] for turn in talk.messages[::2]]


class _Layout:
    """Lays tokens out as rows, by one set of rules."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", rules: TokenRules) -> None:
        ids = control_ids(tokenizer)
        self._bos, self._eos = ids[families.BOS], ids[families.EOS]
        self._rules = rules

    def of_text(self, ids: Sequence[int]) -> list[Encoded]:
        """Lay out a plain text."""
        import numpy as np

        body: list[Sequence[int]] = [[*ids, self._eos]]
        if self._rules.on_long_row is OnLongRow.split:
            body = split_text(body[0], self._rules.max_length - 1)
        laid = (np.array([self._bos, *part], np.int32) for part in body)
        rows = (self._row(part, [(1, len(part))], []) for part in laid)
        return [row for row in rows if self._wanted(row)]

    def of_parts(self, parts: Sequence[Sequence[EncodedTurn]]) -> list[Encoded]:
        """Lay out the parts of a conversation."""
        return [row for row in map(self._of_turns, parts) if self._wanted(row)]

    def _wanted(self, row: Encoded) -> bool:
        return self._rules.on_long_row is not OnLongRow.drop or not row.cut

    def _of_turns(self, turns: Sequence[EncodedTurn]) -> Encoded:
        import numpy as np

        spans, ends, stop = [], [], 1
        last = len(turns) - 1
        for number, turn in enumerate(turns):
            start, stop = stop, stop + len(turn.ids)
            learned = turn.answer and (number == last or self._rules.loss_on is not LossTarget.last_turn)
            if self._rules.loss_on is LossTarget.all:
                spans.append((start, stop))
            elif learned:
                spans.append((start + turn.head, stop))
            if learned:
                ends.append(start + turn.end)
        begin = np.array([self._bos], np.int32)
        return self._row(np.concatenate([begin, *(turn.ids for turn in turns)]), spans, ends)

    def _row(
        self, ids: "NDArray[np.int32]", spans: Sequence[tuple[int, int]], ends: Sequence[int]
    ) -> Encoded:
        import numpy as np

        input_ids = ids[: self._rules.max_length]
        labels = np.full_like(input_ids, NOT_LEARNED)
        for start, stop in spans:
            labels[start:stop] = input_ids[start:stop]
        # A cut right behind <end_of_turn> costs its line break only: that the turn ends is still learned.
        whole = sum(end < len(input_ids) for end in ends)
        return Encoded(input_ids, labels, len(ids), turns=whole, turns_cut=len(ends) - whole)


def find_control_token(example: Example, tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """Return the first control token that is typed in an example's text, of all that the tokenizer has."""
    if isinstance(example, Text):
        texts = [example.text]
    else:
        texts = [example.system, *(text for _, text in example.messages)]
    pattern = _control_pattern(tokenizer)
    return next((found[0] for found in map(pattern.search, texts) if found), None)


@lru_cache(maxsize=1)
def _control_pattern(tokenizer: "PreTrainedTokenizerFast") -> re.Pattern[str]:
    tokens = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    return re.compile("|".join(re.escape(token.content) for token in tokens if token.special))


def encode(example: Example, tokenizer: "PreTrainedTokenizerFast", trim: Trim = Trim.template) -> list[int]:
    """Turn an example into the ids of one row, however long."""
    rules = TokenRules(
        loss_on=LossTarget.all, trim=trim, on_long_row=OnLongRow.truncate, max_length=_UNBOUNDED
    )
    ids: list[int] = encode_batch([example], tokenizer, rules)[0][0].input_ids.tolist()
    return ids


def text_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Turn plain text into the ids that the model goes on from, as a row of plain text begins."""
    return encode(Text(text), tokenizer)[:-1]


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Turn messages into the ids that the model goes on from: the template, then the head of its own turn.

    Args:
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        messages: Objects with role and content, the user's last; a system message may come first.

    Raises:
        DataError: The messages do not alternate, or the last one is not the user's.
    """
    turns = build_prompt(messages)
    whole = encode(Conversation(turns), tokenizer)
    (header,) = encode_texts([families.MODEL_HEADER], tokenizer)
    return [*whole, control_ids(tokenizer)[families.START_OF_TURN], *header]
