"""The certificate: whether an exported folder is the model that was trained, measured before it is named."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.rows import CertificateRow, CertificateRows
from gemma_ft.exporting.merging.merge import MergePlan
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.tensor_files import read_json
from gemma_ft.families import family_of
from gemma_ft.modeling.libraries import quiet_bitsandbytes

if TYPE_CHECKING:
    from gemma_ft.exporting.certificate.comparison import Comparison

logger = logging.getLogger("gemma_ft")

_NOTABLE_LOSS = 0.01  # nats a token


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof of an export."""

    content: dict[str, Any]
    """What certificate.json holds, file hashes aside."""
    summary: list[str]
    """Short lines for the model card."""


def certify(
    plan: MergePlan, folder: Path, rows: CertificateRows, *, trained_storage: TrainedStorage | None
) -> Certificate:
    """Prove that a written folder is the trained model.

    Args:
        plan: What was merged; its `storage` is what it was merged onto.
        folder: The exported folder, whole.
        rows: Rows of the run's own data.
        trained_storage: How training held the base; None for unquantised.

    Raises:
        ExportError: A tensor is not as computed, generation does not stop, or the models are too far apart.
    """
    import torch

    from gemma_ft.exporting.certificate.comparison import compare, trained_whole, window
    from gemma_ft.exporting.certificate.content import Findings, describe, summarize
    from gemma_ft.exporting.certificate.streaming import EMBEDDING
    from gemma_ft.exporting.merging.verify import verify_merge

    if not rows.rows:
        raise ExportError(
            "export.certificate=full has no rows to measure on. Export with export.certificate=none."
        )
    check_ids(rows.rows, plan.tensors[EMBEDDING].shape[0])
    logger.info("certificate: reading every tensor back")
    exactness = verify_merge(plan, folder)
    check_exactness(exactness.differing)
    chosen, stops = window(rows.rows), stop_tokens(folder)
    with quiet_libraries(), torch.no_grad():
        logger.info("certificate: stopping")
        check_stops(folder, chosen, stops)
        comparison = compare(plan, folder, chosen, trained_storage, stops)
    bound, loose, rounding = _check_distances(plan, comparison, chosen)
    _say(comparison, bound, rounds=trained_whole(plan) or rounding is not None)
    findings = Findings(
        plan, trained_storage, rows.source, exactness, comparison, bound, loose, rounding, stops
    )
    return Certificate(describe(findings), summarize(findings))


def _check_distances(
    plan: MergePlan, comparison: "Comparison", rows: Sequence[CertificateRow]
) -> tuple[float, float | None, float | None]:
    """Hold what was measured against its bounds.

    Returns:
        The bound; that for the model as int8 training computes it; and what rounding alone costs, where that
        had to be measured.
    """
    import torch

    from gemma_ft.exporting.certificate.bounds import int8_bound, kl_bound, rounding_bound
    from gemma_ft.exporting.certificate.comparison import measure_rounding

    bound = kl_bound(comparison.noise.kl_mean, {plan.tensors[name].dtype for name in plan.touched})
    rounding = None
    if comparison.difference.kl_mean > bound:
        with quiet_libraries(), torch.no_grad():
            rounding = measure_rounding(plan, rows)
        bound = max(bound, rounding_bound(rounding))
    check_bound(comparison.difference.kl_mean, bound)
    loose = None
    if comparison.as_trained is not None and plan.storage is not None:
        loose = int8_bound(comparison.noise.kl_mean)
        check_bound(comparison.as_trained.kl_mean, loose)
    return bound, loose, rounding


def check_ids(rows: Sequence[CertificateRow], vocabulary: int) -> None:
    """Refuse rows that are none of this model's.

    Raises:
        ExportError: A token is not in the vocabulary.
    """
    for token in (token for row in rows for token in row.input_ids):
        if not 0 <= token < vocabulary:
            raise ExportError(
                f"export.certificate=full has rows with token {token}, beyond a vocabulary of {vocabulary}. "
                "Restore certificate_rows.json, or export with export.certificate=none."
            )


def check_exactness(differing: Sequence[str]) -> None:
    """Refuse a folder with tensors that are not what the merge computes.

    Raises:
        ExportError: There are some.
    """
    if differing:
        raise ExportError(
            f"export.certificate=full finds {differing[0]} on disk other than the merge computes it "
            f"({len(differing)} such). Export again; if it stays so, test the disk and the memory."
        )


def _say(found: "Comparison", bound: float, *, rounds: bool) -> None:
    """Log the outcome, and a warning where rounding whole weights to their format cost what was learned."""
    logger.info(
        "certificate: KL %.1e nats a token (bound %.1e), loss %.4f as trained, %.4f exported",
        found.difference.kl_mean,
        bound,
        found.loss_trained,
        found.loss_exported,
    )
    if rounds and abs(found.loss_exported - found.loss_trained) > _NOTABLE_LOSS:
        logger.warning(
            "certificate: the base's number format rounds away part of what small steps had learned. "
            "Train longer, or from a float32 copy of the base.",
        )


def check_bound(kl: float, bound: float) -> None:
    """Refuse an export that is too far from what was trained, or not a number.

    Raises:
        ExportError: It is.
    """
    if not isfinite(kl):
        raise ExportError(
            "export.certificate=full finds answers that are no finite numbers: the training diverged. "
            "Export an earlier checkpoint, or train again with a lower learning rate."
        )
    if kl > bound:
        raise ExportError(
            f"export.certificate=full finds KL {kl:.2g} between the trained model and the export, against a "
            f"bound of {bound:.2g} ({kl / bound:.3g} times it). Export again with the base that was trained "
            "on; if it stays so, export an earlier checkpoint and report this."
        )


def stop_tokens(folder: Path) -> list[int]:
    """List the tokens that have to stop generation: the family's <end_of_turn>, and the config's end."""
    config = read_json(folder / "config.json")
    ends = config.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return list(dict.fromkeys([family_of(config, str(folder)).end_of_turn_id, *map(int, listed)]))


def check_stops(folder: Path, rows: Sequence[CertificateRow], stops: Sequence[int]) -> None:
    """Let the folder generate each stop token once, and see it stop.

    Raises:
        ExportError: It goes on after one.
    """
    from gemma_ft.exporting.certificate.generation import (
        find_missing_stops,
        load_generation_config,
        prompts_of,
    )
    from gemma_ft.exporting.certificate.passes import open_folder

    settings = load_generation_config(folder)
    prompt = prompts_of(rows, 1)[0]
    missing = find_missing_stops(open_folder(folder).model, settings, prompt, stops)
    if missing:
        raise ExportError(
            f"export.certificate=full made the export say token {missing[0]}, and it did not stop there. "
            "Add the token to eos_token_id in the base's generation_config.json, then export again."
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' notes about how they are used here from users, who cannot act on them."""
    quiet_bitsandbytes()
    noisy = [logging.getLogger(name) for name in ("transformers", "peft")]
    before = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in noisy:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(noisy, before, strict=True):
                each.setLevel(level)
