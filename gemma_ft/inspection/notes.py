"""What is likely not meant, each in a sentence with what would change it."""

from collections.abc import Iterator

from gemma_ft.config.dataset import Copies, NearCopies, OnLongRow
from gemma_ft.inspection.summary import count_of, cut_line, packed_line, percent, rows_of
from gemma_ft.inspection.survey import Survey

_LITTLE = 0.1
"""Share of learned tokens below which it is worth a word."""
_KEEP_ENDS = (
    "dataset.on_long_row=split keeps their words in several rows, dataset.on_long_row=drop leaves them out."
)


def find_notes(survey: Survey) -> Iterator[str]:
    """Say what is likely not meant, each with what would change it."""
    facts, dataset, trainer = survey.facts, survey.config.dataset, survey.config.trainer
    if facts["rows_cut"]:
        ends = f"{count_of(facts['turns_cut'], 'learned turn')} without an end"
        yield (
            f"Cut: {cut_line(survey)}, and {ends}. "
            + ("Raise trainer.max_length." if dataset.on_long_row is OnLongRow.split else _KEEP_ENDS)
        )
    if facts["duplicates"] and dataset.duplicates is Copies.keep:
        yield f"Copies of earlier rows: {facts['duplicates']:,}. dataset.duplicates=drop leaves them out."
    if facts["overlap"] and dataset.overlap is Copies.keep:
        yield f"Rows that are held out as well: {facts['overlap']:,}. dataset.overlap=drop leaves them out."
    if facts["near_duplicates"] and dataset.near_duplicates is not NearCopies.drop:
        near = f"Rows that almost equal an earlier one: {facts['near_duplicates']:,}"
        yield f"{near}. dataset.near_duplicates=drop leaves them out."
    if facts["trained_share"] < _LITTLE:
        yield f"Only {percent(facts['trained_share'])} of the tokens are learned; the rest is read for them."
    if not facts["rows_held_out"]:
        yield "No row is held out, so nothing tells learning from memorising. Set dataset.eval_fraction=0.05."
    if not trainer.packing and survey.batches.packed_sequences * 2 <= survey.lengths.rows:
        yield (
            f"{rows_of(survey.lengths.rows)} would fit into {packed_line(survey)}. "
            "trainer.packing=true does that."
        )
