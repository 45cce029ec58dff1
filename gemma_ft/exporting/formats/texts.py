"""Card and NOTICE of a further format, made from those of the merged checkpoint."""

import re
from collections.abc import Sequence
from typing import Any

_FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


def read_front_matter(card: str) -> dict[str, Any]:
    """Read the head of a model card; empty where it has none."""
    import yaml

    found = _FRONT.match(card)
    content = yaml.safe_load(found[1]) if found else None
    return content if isinstance(content, dict) else {}


def derive_card(card: str, what: str, use: Sequence[str] | None, *, library: str, tags: Sequence[str]) -> str:
    """Build the card of a further format.

    What is said of base and training stays true, the relation to the base included: "quantized" would call
    the base itself quantised, which it was fine-tuned before.

    Args:
        card: README.md of the merged checkpoint.
        what: A sentence about this format.
        use: The lines on how to use it; None keeps those of the merged checkpoint.
        library: Which library loads it.
        tags: Added to the front matter.
    """
    import yaml

    front = read_front_matter(card)
    front |= {"library_name": library, "tags": [*front.get("tags", ()), *tags]}
    opening, *sections = re.split(r"^(?=## )", _FRONT.sub("", card, count=1), flags=re.MULTILINE)
    kept = [section for section in sections if use is None or not section.startswith("## Use\n")]
    kept = [
        section.replace("## Certificate\n", "## Certificate of the merged checkpoint\n", 1)
        for section in kept
    ]
    usage = [] if use is None else ["\n".join(["## Use", "", *use, "", ""])]
    head = yaml.safe_dump(front, sort_keys=False).rstrip()
    return "".join([f"---\n{head}\n---\n", opening.rstrip(), f"\n\n{what}\n\n", *usage, *kept])


def derive_notice(notice: str, what: str) -> str:
    """Add a modification to NOTICE, as the terms ask."""
    return notice.rstrip() + f"\n{what}\n"
