"""The trained model beside the exported folder, both read from disk a layer at a time."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.certificate.generation import (
    Greedy,
    generate_greedily,
    load_generation_config,
    prompts_of,
)
from gemma_ft.exporting.certificate.measures import Difference, Side, SideTotals, measure
from gemma_ft.exporting.certificate.passes import Batch, build_batch, open_folder, open_trained
from gemma_ft.exporting.certificate.rows import UNLEARNED, CertificateRow, cut_row
from gemma_ft.exporting.merging.adapter import ADAPTER_CONFIG
from gemma_ft.exporting.merging.merge import MergePlan
from gemma_ft.exporting.merging.storage import TrainedStorage

logger = logging.getLogger("gemma_ft")

MOST_POSITIONS = 768
"""Of one pass over the rows, padding included: for a 7B about two minutes on two cores, and activations of
0.4 GB with the continued prompts beside them."""
_LONG_ROWS = 6
"""Long rows are cut so that this many share the pass."""
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
    """From one model in float32 to itself in bf16: the export, or after a full fine-tune the trained one."""
    loss_trained: float
    loss_exported: float
    greedy: GreedyAgreement
    ends: Ends


def window(rows: Sequence[CertificateRow]) -> list[CertificateRow]:
    """Cut recorded rows down to what one pass takes: all if they are short, a few if they are long."""
    longest = MOST_POSITIONS // min(len(rows), _LONG_ROWS)
    cut = [row if len(row.input_ids) <= longest else cut_row(row, longest) for row in rows]
    return cut[: MOST_POSITIONS // max(len(row.input_ids) for row in cut)]


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
    whole = trained_whole(plan)
    exported, greedy = _run_export(folder, plan.trained if whole else folder, rows, batch)
    trained, said = _run_trained(plan, trained_storage, rows, batch, greedy)
    logger.info("certificate: comparing their answers over the vocabulary")
    sides = [*exported, *trained]
    pairs = [(2, 0), (2 if whole else 0, 1), (len(sides) - 1, 0)]
    totals, found = measure(sides, pairs, batch.targets)
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
        ends=_ends(batch, totals[-1], totals[0], stops),
    )


def measure_rounding(plan: MergePlan, rows: Sequence[CertificateRow]) -> float:
    """Return how far rounding alone takes the trained model: its mean divergence in nats a token.

    PEFT merges, layer by layer, so that no fault of our own merge can pass for rounding.
    """
    logger.info("certificate: measuring what rounding to the stored format costs")
    batch = build_batch(rows)
    models = [open_trained(plan.base, plan.trained, plan.storage, rounded=each) for each in (False, True)]
    _, (found,) = measure([each.side(batch.states(each)) for each in models], [(0, 1)], batch.targets)
    return found.kl_mean


def trained_whole(plan: MergePlan) -> bool:
    """Say whether a whole model was trained, whose float32 weights the export rounds, and no adapter."""
    return not (plan.trained / ADAPTER_CONFIG).is_file()


def _run_export(
    folder: Path, noisy: Path, rows: Sequence[CertificateRow], batch: Batch
) -> tuple[list[Side], list[Greedy]]:
    """Run the export in float32 and let it continue prompts, and run the noisy folder in bf16."""
    logger.info("certificate: letting the export continue %d prompts by %d tokens", PROMPTS, NEW_TOKENS)
    exported = open_folder(folder)
    settings = load_generation_config(folder)
    greedy = generate_greedily(exported.model, settings, prompts_of(rows, PROMPTS), NEW_TOKENS)
    logger.info("certificate: running the export on %d rows, and the noise floor in bf16", len(rows))
    half = open_folder(noisy, torch.bfloat16)
    return [each.side(batch.states(each)) for each in (exported, half)], greedy


def _run_trained(
    plan: MergePlan,
    storage: TrainedStorage | None,
    rows: Sequence[CertificateRow],
    batch: Batch,
    greedy: Sequence[Greedy],
) -> tuple[list[Side], Side]:
    """Run what was merged, unmerged, and last the model as training computed it, where that is another.

    Returns:
        Their answers to the rows, and the last one's to what the export generated.
    """
    logger.info("certificate: running the trained model on the same rows")
    models = [open_trained(plan.base, plan.trained, plan.storage)]
    if storage is not None and (plan.storage is None or storage.method is QuantizationMethod.int8):
        models.append(open_trained(plan.base, plan.trained, storage, int8_arithmetic=True))
    sides = [each.side(batch.states(each)) for each in models[:-1]]
    states = build_batch([*rows, *map(_as_row, greedy)]).states(models[-1])
    count = len(batch.targets)
    return [*sides, models[-1].side(states[:count])], models[-1].side(states[count:])


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


def _ends(batch: Batch, trained: SideTotals, exported: SideTotals, stops: Sequence[int]) -> Ends:
    stopping = torch.tensor(list(stops))
    at_end = torch.isin(batch.targets, stopping) & batch.learned

    def count(totals: SideTotals) -> int:
        return int(torch.isin(totals.best[at_end], stopping).sum())

    return Ends(int(at_end.sum()), count(trained), count(exported))
