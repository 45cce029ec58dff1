"""The lines that a run says of its data."""

from collections.abc import Iterator
from typing import Any

from gemma_ft.config.dataset import Copies, DatasetConfig, NearCopies


def data_lines(dataset: DatasetConfig, facts: dict[str, Any]) -> Iterator[str]:
    """Say what the rows are, and then only what is notable of them.

    Args:
        dataset: The keys.
        facts: What data.json holds.
    """
    name = " + ".join(dataset.mixture) if dataset.mixture else dataset.path
    yield (
        f"data {name}: {facts['rows_train']:,} rows to train on, {facts['rows_held_out']:,} held out; "
        f"{facts['tokens']:,} tokens, {facts['trained_share']:.0%} of them learned"
    )
    for part, share in (facts["mixture"] or {}).items():
        yield (
            f"  {part}: weight {share['weight']:.1%}; {share['tokens']:,} tokens "
            f"({share['tokens_share']:.1%}), {share['rows']:,} rows ({share['rows_share']:.1%}) "
            f"of {share['rows_available']:,}"
        )
    for cause, number in facts["rows_dropped"].items():
        yield f"  {number:,} rows left out: {cause}"
    for cause, number in facts["held_out_dropped"].items():
        yield f"  {number:,} held-out rows left out: {cause}"
    if facts["rows_cut"]:
        yield (
            f"  {facts['rows_cut']:,} rows cut at trainer.max_length={facts['max_length']}, "
            f"{facts['turns_cut']:,} learned turns lost their end there (see dataset.on_long_row)"
        )
    if facts["system_messages"]:
        yield f"  {facts['system_messages']:,} system messages are put before the first user turn"
    if facts["unused_columns"]:
        yield f"  columns that are not read: {', '.join(facts['unused_columns'])}"
    yield from _copy_lines(dataset, facts)
    if facts["packing"]:
        yield (
            f"  packed into {facts['packing']['sequences']:,} sequences, "
            f"{facts['packing']['efficiency']:.0%} full"
        )


def _copy_lines(dataset: DatasetConfig, facts: dict[str, Any]) -> Iterator[str]:
    if facts["duplicates"] and dataset.duplicates is Copies.keep:
        copies = f"{facts['duplicates']:,} rows are copies of earlier ones"
        yield f"  {copies} (dataset.duplicates=drop removes them)"
    if facts["overlap"] and dataset.overlap is Copies.keep:
        yield f"  {facts['overlap']:,} rows are in eval_split as well (dataset.overlap=drop removes them)"
    if facts["near_duplicates"] and dataset.near_duplicates is NearCopies.report:
        yield (
            f"  {facts['near_duplicates']:,} rows are almost the same as earlier ones "
            "(dataset.near_duplicates=drop removes them)"
        )
