"""The trained model beside the exported folder, both read from disk a layer at a time."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma_ft.exporting.certificate.generation import (
    Greedy,
    generate_greedily,
    load_generation_config,
    prompts_of,
)
from gemma_ft.exporting.certificate.measures import Difference, Side, SideTotals, measure
from gemma_ft.exporting.certificate.passes import Streamed, build_batch, open_folder, open_trained
from gemma_ft.exporting.certificate.rows import UNLEARNED, CertificateRow, cut_row
from gemma_ft.exporting.merging.merge import MergePlan
from gemma_ft.exporting.merging.storage import TrainedStorage

logger = logging.getLogger("gemma_ft")

MOST_ROWS = 8
MOST_POSITIONS = 1024
"""Of one pass, padding included: a pass of a 7B over them takes about two minutes on two cores, and its
widest activations 0.4 GB."""
PROMPTS = 4
NEW_TOKENS = 12
"""Each reads the whole checkpoint once."""


@dataclass(frozen=True, slots=True)
class GreedyAgreement:
    """How far the trained model says the tokens that the export said."""

    prompts: int
    tokens: int
    equal: int
    """Tokens before the first difference of each prompt."""
    first_difference: int | None
    """The earliest place, counted from 0, over all prompts; None where there is none."""
    logit_gap: float | None
    """There, by how much the trained model prefers its own token."""


@dataclass(frozen=True, slots=True)
class Ends:
    """After how many of the rows' answers the likeliest token is one that stops."""

    answers: int
    trained: int
    exported: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was measured between the trained model and the export."""

    rows: int
    tokens: int
    learned_tokens: int
    difference: Difference
    """From the model that was merged, unmerged, to the export."""
    as_trained: Difference | None
    """From the model as training computed it to the export, where that is another."""
    noise: Difference
    """From the export in float32 to itself in bf16."""
    loss_trained: float
    loss_exported: float
    greedy: GreedyAgreement
    ends: Ends


def window(rows: Sequence[CertificateRow]) -> list[CertificateRow]:
    """Cut recorded rows down to what one pass takes."""
    kept = rows[:MOST_ROWS]
    longest = MOST_POSITIONS // len(kept)
    return [row if len(row.input_ids) <= longest else cut_row(row, longest) for row in kept]


def compare(
    plan: MergePlan,
    folder: Path,
    rows: Sequence[CertificateRow],
    trained_storage: TrainedStorage | None,
    stops: Sequence[int],
) -> Comparison:
    """Run both models over the rows.

    Args:
        plan: What was merged.
        folder: The exported folder.
        rows: What to run them on, as `window` leaves it.
        trained_storage: How training held the base.
        stops: The tokens that end an answer.
    """
    batch = build_batch(rows)
    exported = open_folder(folder)
    logger.info("certificate: generating %d tokens for each of %d prompts", NEW_TOKENS, PROMPTS)
    greedy = generate_greedily(
        exported.model, load_generation_config(folder), prompts_of(rows, PROMPTS), NEW_TOKENS
    )
    logger.info("certificate: the export on %d rows, in float32 and in bf16", len(rows))
    sides = [exported.side(batch.states(exported))]
    half = open_folder(folder, torch.bfloat16)
    sides.append(half.side(batch.states(half)))
    logger.info("certificate: the trained model on the same rows")
    trained = _open_references(plan, trained_storage)
    said_GD: torch.Tensor | None = None
    with_said = build_batch([*rows, *map(_as_row, greedy)])
    for reference in trained:
        last = reference is trained[-1]
        states = (with_said if last else batch).states(reference)
        sides.append(reference.side(states[: len(batch.targets)]))
        said_GD = states[len(batch.targets) :]
    logger.info("certificate: comparing their answers over the vocabulary")
    pairs = [(2, 0), (0, 1), (len(sides) - 1, 0)]
    totals, found = measure(sides, pairs, batch.targets)
    assert said_GD is not None
    said = Side(sides[-1].head, said_GD, sides[-1].softcap)
    return Comparison(
        rows=len(rows),
        tokens=len(batch.targets),
        learned_tokens=int(batch.learned.sum()),
        difference=found[0],
        noise=found[1],
        as_trained=found[2] if len(trained) > 1 else None,
        loss_trained=totals[-1].loss(batch.learned),
        loss_exported=totals[0].loss(batch.learned),
        greedy=_agreement(said, greedy),
        ends=_ends(batch.targets, batch.learned, totals[-1], totals[0], stops),
    )


def _open_references(plan: MergePlan, trained_storage: TrainedStorage | None) -> list[Streamed]:
    """Open what was merged, unmerged, and where training computed with another, that one after it."""
    references = [open_trained(plan.base, plan.trained, plan.storage)]
    if trained_storage is not None and (plan.storage is None or trained_storage.method == "int8"):
        references.append(open_trained(plan.base, plan.trained, trained_storage, int8_arithmetic=True))
    return references


def _as_row(said: Greedy) -> CertificateRow:
    """Lay out a prompt and its continuation so that the tokens generated count as learned."""
    labels = (*[UNLEARNED] * len(said.prompt), *said.generated)
    return CertificateRow(said.prompt + said.generated, labels)


def _agreement(said: Side, greedy: Sequence[Greedy]) -> GreedyAgreement:
    """Look which generated tokens the trained model finds likeliest, each after the ones before it."""
    batch = build_batch([_as_row(answer) for answer in greedy])
    (totals,), _ = measure([said], [], batch.targets)
    gaps_T = (totals.best_logits - totals.target_logits)[batch.learned]
    same_T = (totals.best == batch.targets)[batch.learned]
    equal, firsts, start = 0, [], 0
    for answer in greedy:
        same = same_T[start : start + len(answer.generated)].tolist()
        until = same.index(False) if False in same else len(same)
        equal += until
        if until < len(same):
            firsts.append((until, float(gaps_T[start + until])))
        start += len(same)
    first, gap = min(firsts) if firsts else (None, None)
    return GreedyAgreement(len(greedy), len(same_T), equal, first, gap)


def _ends(
    targets_T: torch.Tensor,
    learned_T: torch.Tensor,
    trained: SideTotals,
    exported: SideTotals,
    stops: Sequence[int],
) -> Ends:
    stopping = torch.tensor(list(stops))
    at_end = torch.isin(targets_T, stopping) & learned_T

    def count(totals: SideTotals) -> int:
        return int(torch.isin(totals.best[at_end], stopping).sum())

    return Ends(int(at_end.sum()), count(trained), count(exported))
