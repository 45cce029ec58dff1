"""What makes two configurations the same run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gemma_ft.config.schema import RunConfig

NOT_IDENTITY = (
    "name",
    "output_dir",
    "export",
    "tracking",
    "trainer.logging_steps",
    "trainer.max_hours",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "trainer.sample_prompt",
    "trainer.sample_tokens",
)
"""Keys that do not change the trained weights, and so may change while a run goes on."""


def identity(config: RunConfig) -> dict[str, Any]:
    """Return every key that changes the trained weights, with its value."""
    flat = _flatten(asdict(config))
    return {
        key: value
        for key, value in flat.items()
        if key not in NOT_IDENTITY and key.partition(".")[0] not in NOT_IDENTITY
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
