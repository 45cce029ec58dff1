"""Which rows are kept for evaluation, chosen by their content so that the choice is stable."""

import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from gemma_ft.data.conversations.examples import Example, Text, fold_system

T = TypeVar("T")

DIGEST_BYTES = 32
"""Length of a content digest."""


def content_digest(example: Example) -> bytes:
    """Hash what an example says, whatever file, shape or place it came from."""
    if isinstance(example, Text):
        content: object = example.text
    else:
        content = [[role, text.rstrip()] for role, text in fold_system(example)]
        content[0][1] = content[0][1].lstrip()  # type: ignore[index]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8")).digest()


def hold_out(distinct: Sequence[bytes], fraction: float, seed: int) -> set[bytes]:
    """Choose a share of the distinct rows, at least one.

    Copies of a row share its digest, so that they fall on one side. Rows that are added or removed move no
    other row across, but for the few at the border of the share.

    Args:
        distinct: Content of the rows, each once.
        fraction: Share of the distinct rows; 0 chooses none.
        seed: Chooses another set.
    """
    number = max(1, round(fraction * len(distinct))) if fraction > 0 and distinct else 0
    return set(heapq.nsmallest(number, distinct, key=lambda digest: rank(digest, seed)))


def pick(items: Iterable[tuple[T, bytes]], most: int | None, seed: int) -> Sequence[tuple[T, bytes]]:
    """Pick at most so many items by their digest, a fair sample of all, and keep their order.

    Args:
        items: Anything with its digest; read once, and no more than `most` are held.
        most: How many; none means all.
        seed: Picks another sample.
    """
    if most is None:
        return list(items)
    ranked = heapq.nsmallest(most, enumerate(items), key=lambda entry: (rank(entry[1][1], seed), entry[0]))
    return [item for _, item in sorted(ranked, key=lambda entry: entry[0])]


def rank(digest: bytes, seed: int) -> bytes:
    """Give a row its place in an order that content and seed shuffle."""
    return hashlib.sha256(b"%d:" % seed + digest).digest()
