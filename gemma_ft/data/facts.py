"""What data.json says of the rows of a run."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemma_ft.config.dataset import DatasetConfig, NearCopies, row_parts
from gemma_ft.data.packing import describe_packing
from gemma_ft.data.parts import Part
from gemma_ft.data.tokens.encoding import TokenRules

if TYPE_CHECKING:
    import datasets
    import numpy

    Array = numpy.ndarray[Any, Any]


def describe_data(
    dataset: DatasetConfig,
    parts: Sequence[Part],
    rows: "datasets.Dataset",
    origins: "Array",
    held_out: "datasets.Dataset | None",
    packed: "datasets.Dataset | None",
    rules: TokenRules,
    seed: int,
) -> dict[str, Any]:
    """Count and hash everything that a run reads.

    Args:
        dataset: The keys.
        parts: The sources.
        rows: The training rows.
        origins: The number of the source that each of them is from.
        held_out: The rows that are evaluated.
        packed: The sequences that the training rows are packed into, if they are.
        rules: How rows became tokens.
        seed: Chose the held-out rows.
    """
    counts, report = _token_counts(rows), parts[0].train.report
    return {
        **_source_facts(dataset, parts),
        "loss_on": dataset.loss_on.value,
        "plain_text": _sum(parts, "plain_text") == _sum(parts, "examples"),
        "tokenizer_sha256": report["tokenizer_sha256"],
        "template_sha256": report["contract"]["template_sha256"],
        "max_length": rules.max_length,
        "seed": seed,
        **_row_counts(dataset, parts, held_out),
        "rows_train": rows.num_rows,
        **counts,
        "system_messages": _sum(parts, "system_messages"),
        "unused_columns": sorted({name for part in parts for name in part.train.report["unused_columns"]}),
        "packing": describe_packing(packed, counts["tokens"], rules.max_length) if packed else None,
        "mixture": _mixture(parts, rows, origins) if dataset.mixture else None,
        "contract": report["contract"],
    }


def _source_facts(dataset: DatasetConfig, parts: Sequence[Part]) -> dict[str, Any]:
    sources = [
        {
            "source": rows.source.value,
            "path": rows.path,
            "config": rows.config,
            "revision": part.revision,
            "split": rows.split,
            "eval_split": rows.eval_split,
            "data_sha256": part.data_sha256(),
        }
        for part, rows in zip(parts, row_parts(dataset).values(), strict=True)
    ]
    if not dataset.mixture:
        return sources[0]
    named = {part.name: source for part, source in zip(parts, sources, strict=True)}
    whole = _sha256(" ".join(part.data_sha256() for part in parts))
    return {"source": "mixture", "path": None, "revision": None, "data_sha256": whole, "sources": named}


def _row_counts(
    dataset: DatasetConfig, parts: Sequence[Part], held_out: "datasets.Dataset | None"
) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    held_out_dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.train.report["dropped"])
        dropped.update({cause: int(rows.sum()) for cause, rows in part.left_out.items()})
        held_out_dropped.update(part.held_out.report["dropped"] if part.held_out else {})
    looked = dataset.near_duplicates is not NearCopies.ignore
    return {
        "rows_read": sum(part.train.report["rows_read"] for part in parts),
        "rows_held_out": sum(
            part.held_out.rows.num_rows if part.held_out else int(part.aside.sum()) for part in parts
        ),
        "rows_evaluated": held_out.num_rows if held_out is not None else 0,
        "rows_dropped": dict(dropped),
        "held_out_dropped": dict(held_out_dropped),
        "duplicates": sum(int(part.duplicate.sum()) for part in parts),
        "overlap": sum(int(part.overlap.sum()) for part in parts),
        "near_duplicates": sum(int(part.near_duplicate.sum()) for part in parts) if looked else None,
    }


def _token_counts(rows: "datasets.Dataset") -> dict[str, Any]:
    columns = numbers(rows, "length", "full_length", "trained", "turns", "turns_cut")
    tokens, trained = int(columns["length"].sum()), int(columns["trained"].sum())
    return {
        "rows_cut": int((columns["full_length"] > columns["length"]).sum()),
        "tokens": tokens,
        "trained_tokens": trained,
        "trained_share": trained / tokens,
        "turns_learned": int(columns["turns"].sum()),
        "turns_cut": int(columns["turns_cut"].sum()),
    }


def numbers(rows: "datasets.Dataset", *columns: str) -> dict[str, "Array"]:
    """Read columns of whole numbers of the chosen rows."""
    read: dict[str, Array] = rows.select_columns(list(columns)).with_format("numpy")[:]
    return read


def _mixture(parts: Sequence[Part], rows: "datasets.Dataset", origins: "Array") -> dict[str, Any]:
    """Say what each source gave, beside what was asked of it."""
    tokens = numbers(rows, "length")["length"]
    whole = sum(part.weight for part in parts)
    shares = {}
    for number, part in enumerate(parts):
        lengths = tokens[origins == number]
        shares[part.name] = {
            "weight": part.weight / whole,
            "rows": len(lengths),
            "rows_available": int(part.used.sum()),
            "rows_share": len(lengths) / rows.num_rows,
            "tokens": int(lengths.sum()),
            "tokens_share": int(lengths.sum()) / int(tokens.sum()),
        }
    return shares


def _sum(parts: Sequence[Part], count: str) -> int:
    return sum(stored.report[count] for part in parts for stored in (part.train, part.held_out) if stored)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
