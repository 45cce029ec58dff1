"""What the exported folder generates: greedy tokens to check, and the proof that it stops."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gemma_ft.exporting.certificate.rows import CertificateRow

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import GenerationConfig, PreTrainedModel

_SHORTEST_PROMPT = 8  # rows of plain text are learned from their second token on


@dataclass(frozen=True, slots=True)
class Greedy:
    """One prompt, and the tokens that were generated after it, a stop token included."""

    prompt: tuple[int, ...]
    generated: tuple[int, ...]


def prompts_of(rows: Sequence[CertificateRow], count: int) -> list[tuple[int, ...]]:
    """Cut the shortest prompts: what stands before the first learned token."""
    prompts = {
        row.input_ids[: max(row.first_learned, min(_SHORTEST_PROMPT, len(row.input_ids) // 2), 1)]
        for row in rows
    }
    return sorted(prompts, key=lambda prompt: (len(prompt), prompt))[:count]


def load_generation_config(folder: "Path") -> "GenerationConfig":
    """Load a folder's own generation settings, with sampling switched off."""
    from transformers import GenerationConfig

    settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    settings.do_sample = False
    settings.temperature = settings.top_k = settings.top_p = settings.min_p = None
    settings.max_length = None
    return settings


def generate_greedily(
    model: "PreTrainedModel", settings: "GenerationConfig", prompts: Sequence[tuple[int, ...]], tokens: int
) -> list[Greedy]:
    """Continue prompts with the likeliest tokens, by transformers' own `generate`."""
    ids_BL, mask_BL = _pad_left(prompts)
    out_BL = _generate(model, settings, ids_BL, mask_BL, tokens, [])
    stops = set(_listed(settings.eos_token_id))
    made = []
    for prompt, new in zip(prompts, out_BL[:, ids_BL.shape[1] :].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(new) if token in stops), len(new))
        made.append(Greedy(prompt, tuple(new[:end])))
    return made


def find_missing_stops(
    model: "PreTrainedModel", settings: "GenerationConfig", prompt: tuple[int, ...], stops: Sequence[int]
) -> list[int]:
    """Make the model say each stop token once, and return those after which generation goes on.

    One prompt a token; after it, a row that goes on has to say an ordinary token, a finished row is padded.
    """
    pad = settings.pad_token_id
    ordinary = next(token for token in range(len(stops) + 2) if token != pad and token not in stops)
    ids_BL = torch.tensor([prompt] * len(stops))
    script = [list(stops), [ordinary] * len(stops)]
    out_BL = _generate(model, settings, ids_BL, torch.ones_like(ids_BL), len(script), [_Say(script)])
    after = out_BL[:, ids_BL.shape[1] + 1 :]
    return [stop for stop, rest in zip(stops, after.tolist(), strict=True) if ordinary in rest]


class _Say:
    """Leave one possible token for each row, step by step."""

    def __init__(self, script: list[list[int]]) -> None:
        self._script = iter(script)

    def __call__(self, input_ids: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        tokens = torch.tensor(next(self._script))
        forced_BV = torch.full_like(scores_BV, -torch.inf)
        return forced_BV.scatter(1, tokens[:, None], 0.0)


def _generate(
    model: "PreTrainedModel",
    settings: "GenerationConfig",
    ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    tokens: int,
    processors: list[Any],
) -> torch.Tensor:
    from transformers import LogitsProcessorList

    own = deepcopy(settings)
    own.max_new_tokens = tokens
    out_BL: torch.Tensor = model.generate(
        ids_BL,
        attention_mask=mask_BL,
        generation_config=own,
        logits_processor=LogitsProcessorList(processors),
    )
    return out_BL


def _pad_left(prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _listed(ids: Any) -> list[int]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [int(ids)]
