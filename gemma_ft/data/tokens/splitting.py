"""Where a long conversation or text is parted, so that each part is a row of its own."""

from collections.abc import Sequence

from gemma_ft.data.tokens.turns import EncodedTurn


def split_turns(
    turns: Sequence[EncodedTurn], openings: Sequence[EncodedTurn], room: int
) -> list[list[EncodedTurn]]:
    """Part a conversation between its exchanges, each part as long as fits; an exchange is never torn.

    Args:
        turns: The turns, from user to assistant.
        openings: The user's turn of each exchange as it reads where a part begins: with the system message.
        room: Most tokens of a part; an exchange that is longer stands alone.
    """
    parts: list[list[EncodedTurn]] = []
    left = 0
    for opening, user, answer in zip(openings, turns[::2], turns[1::2], strict=True):
        size = len(user.ids) + len(answer.ids)
        if parts and size <= left:
            parts[-1] += [user, answer]
            left -= size
        else:
            parts.append([opening, answer])
            left = room - len(opening.ids) - len(answer.ids)
    return parts


def last_turns(turns: Sequence[EncodedTurn], openings: Sequence[EncodedTurn], room: int) -> list[EncodedTurn]:
    """Return the last exchange, with as many of those before it as fit.

    Args:
        turns: The turns, from user to assistant.
        openings: As for `split_turns`.
        room: Most tokens; a last exchange that is longer stands alone.
    """
    start = len(openings) - 1
    behind = len(turns[-1].ids)
    while start > 0:
        behind += len(turns[2 * start].ids)
        before = len(turns[2 * start - 1].ids)
        if len(openings[start - 1].ids) + before + behind > room:
            break
        behind += before
        start -= 1
    return [openings[start], *turns[2 * start + 1 :]]


def split_text(ids: Sequence[int], room: int) -> list[Sequence[int]]:
    """Part the ids of a text; the last part holds more than the end-of-text token alone.

    Args:
        ids: The text and its end-of-text token.
        room: Most tokens of a part.
    """
    starts = list(range(0, len(ids), max(room, 1)))
    if len(starts) > 1 and starts[-1] == len(ids) - 1 and room > 1:
        starts[-1] -= 1
    return [ids[start:stop] for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True)]
