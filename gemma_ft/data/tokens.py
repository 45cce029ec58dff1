"""Gemma's token contract: which ids a conversation becomes, and which of them are learned."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_ft import families
from gemma_ft.config.dataset import LossTarget
from gemma_ft.data.conversations import Conversation, Example, Text, build_prompt
from gemma_ft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOT_LEARNED = -100
"""Label of a token that is not in the loss, in torch's convention."""

_BOS, _EOS, _PAD = "<bos>", "<eos>", "<pad>"
_SAMPLE = "Is it  so?\n\n1. \u00e9\u4e2d \U0001f600"
_CONTROL = (_BOS, _EOS, _PAD, families.START_OF_TURN, families.END_OF_TURN)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model sees it."""

    input_ids: list[int]
    labels: list[int]
    """The same ids where they are learned, else NOT_LEARNED."""
    cut: bool
    """Whether the row was longer than max_length."""

    @property
    def trained(self) -> int:
        """Count the tokens in the loss."""
        return len(self.labels) - self.labels.count(NOT_LEARNED)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of ordinary text between two control tokens."""

    text: str
    learned_from: int | None
    """The character from which it is learned; none: not at all."""


def encode(
    example: Example, tokenizer: "PreTrainedTokenizerFast", loss_on: LossTarget, max_length: int
) -> tuple[list[int], list[int]]:
    """Turn one example into token ids and labels, as `encode_batch` does.

    Returns:
        Ids and labels.
    """
    row = encode_batch([example], tokenizer, loss_on, max_length)[0]
    return row.input_ids, row.labels


def encode_batch(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerFast", loss_on: LossTarget, max_length: int
) -> list[Encoded]:
    """Turn examples into token ids and labels.

    A conversation gets the ids of Gemma's whole rendered template. Control tokens are put as ids; those that
    somebody typed into a text stay ordinary text. Plain text stands between BOS and EOS and is learned whole.
    BOS is never learned, since nothing predicts it.

    Args:
        examples: Conversations and plain texts.
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        loss_on: Which turns of a conversation are learned.
        max_length: Longer rows are cut at this many tokens.

    """
    ids = _control_ids(tokenizer)
    layouts = [_layout(example, loss_on) for example in examples]
    runs = [piece for layout in layouts for piece, _ in layout if isinstance(piece, _Run)]
    encoded = iter(_encode_runs(runs, tokenizer))
    return [_assemble(layout, encoded, ids, max_length) for layout in layouts]


_Layout = list[tuple["str | _Run", bool]]
"""Control tokens and runs of text in order, each with whether it is learned (a run: from its own mark on)."""


def _layout(example: Example, loss_on: LossTarget) -> _Layout:
    everything = loss_on is LossTarget.all
    if isinstance(example, Text):
        return [(_BOS, False), (_Run(example.text, 0), True), (_EOS, True)]
    pieces: _Layout = [(_BOS, False)]
    for number, (role, text) in enumerate(example.messages, start=1):
        last = number == len(example.messages)
        answer = role == "assistant" and (last or loss_on is not LossTarget.last_turn)
        pieces += _turn(role, text, learned=answer or everything, header_learned=everything)
    return pieces


def _turn(role: str, text: str, *, learned: bool, header_learned: bool) -> _Layout:
    header = families.MODEL_HEADER if role == "assistant" else families.USER_HEADER
    mark = (0 if header_learned else len(header)) if learned else None
    return [
        (families.START_OF_TURN, header_learned),
        (_Run(header + text.strip(), mark), learned),
        (families.END_OF_TURN, learned),
        (_Run("\n", 0 if learned else None), learned),
    ]


def _assemble(
    layout: _Layout, encoded: Iterator[tuple[list[int], int]], ids: Mapping[str, int], max_length: int
) -> Encoded:
    input_ids: list[int] = []
    labels: list[int] = []
    for piece, learned in layout:
        tokens, skipped = ([ids[piece]], 0) if isinstance(piece, str) else next(encoded)
        input_ids += tokens
        masked = skipped if learned else len(tokens)
        labels += [NOT_LEARNED] * masked
        labels += tokens[masked:]
    return Encoded(input_ids[:max_length], labels[:max_length], cut=len(input_ids) > max_length)


def _encode_runs(runs: Sequence[_Run], tokenizer: "PreTrainedTokenizerFast") -> list[tuple[list[int], int]]:
    """Tokenise runs of ordinary text.

    Returns:
        For each run its ids and how many of them come before what is learned.
    """
    # Each turn repeats its "\n" and long data its questions: a text is tokenised once a batch.
    texts = list(dict.fromkeys(run.text for run in runs))
    with _as_ordinary_text(tokenizer) as backend:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        tokens = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        header = backend.encode(families.MODEL_HEADER, add_special_tokens=False).ids
        return [(tokens[run.text], _skipped(run, tokens[run.text], header, backend)) for run in runs]


def _skipped(run: _Run, tokens: Sequence[int], header: Sequence[int], backend: Any) -> int:
    """Count the tokens that end before the first learned character."""
    if not run.learned_from:
        return 0
    if tokens[: len(header)] == header:
        return len(header)
    # A merge across the border: such a token carries the first words of the answer, so it is learned.
    offsets = backend.encode(run.text, add_special_tokens=False).offsets
    return sum(1 for _, end in offsets if end <= run.learned_from)


@contextmanager
def _as_ordinary_text(tokenizer: "PreTrainedTokenizerFast") -> Iterator[Any]:
    """Lend the Rust tokenizer in a state in which it adds, cuts and recognises nothing by itself."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        backend.encode_special_tokens = before[0]
        if before[1] is not None:
            backend.enable_truncation(**before[1])
        if before[2] is not None:
            backend.enable_padding(**before[2])


def text_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Turn plain text into the ids that the model goes on from, as a row of plain text begins."""
    return encode_batch([Text(text)], tokenizer, LossTarget.all, max_length=1 << 62)[0].input_ids[:-1]


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Turn messages into the ids that the model goes on from: the template, then the head of its own turn.

    Args:
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        messages: Objects with role and content, the user's last; a system message may come first.

    Raises:
        DataError: The messages do not alternate, or the last one is not the user's.
    """
    turns = build_prompt(messages)
    whole = encode_batch([Conversation(turns)], tokenizer, LossTarget.all, max_length=1 << 62)[0].input_ids
    with _as_ordinary_text(tokenizer) as backend:
        header = backend.encode(families.MODEL_HEADER, add_special_tokens=False).ids
    return [*whole, _control_ids(tokenizer)[families.START_OF_TURN], *header]


def _control_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    return {token: tokenizer.backend_tokenizer.token_to_id(token) for token in _CONTROL}


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
    ids = _control_ids(tokenizer)
    for token, token_id in ids.items():
        if tokenizer.backend_tokenizer.encode(token, add_special_tokens=False).ids != [token_id]:
            return f"without {token} as one token"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        return f"that pads with {tokenizer.pad_token or 'nothing'}, where it must be <pad>"
    with _as_ordinary_text(tokenizer) as backend:
        typed = backend.encode(" ".join(_CONTROL), add_special_tokens=False).ids
    if not set(typed).isdisjoint(ids.values()):
        return "that takes control tokens typed in a text for real ones"
    rendered = (
        f"{_BOS}{families.START_OF_TURN}{families.USER_HEADER}{_SAMPLE}{families.END_OF_TURN}\n"
        f"{families.START_OF_TURN}{families.MODEL_HEADER}{_SAMPLE}{families.END_OF_TURN}\n"
    )
    whole = tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False).ids
    sample = Conversation((("user", _SAMPLE), ("assistant", _SAMPLE)))
    if encode(sample, tokenizer, LossTarget.all, len(whole) + 1)[0] != whole:
        return "that changes the text beside control tokens"
    return None
