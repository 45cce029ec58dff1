"""What became of the rows that were read, in words."""

from gemma_ft.inspection.survey import Survey


def origin(survey: Survey) -> str:
    """Say what the training rows were taken from."""
    read, trained = survey.facts["rows_read"], survey.facts["rows_train"]
    if read == trained:
        return ""
    return f"{'of' if survey.rows_made == read >= trained else 'from'} {read:,} read"


def rows_line(survey: Survey) -> str:
    """Say what became of every row."""
    facts = survey.facts
    evaluated = facts["rows_evaluated"]
    held_out = f"{facts['rows_held_out']:,} held out"
    if evaluated != facts["rows_held_out"]:
        held_out += f" ({evaluated:,} of them evaluated)"
    dropped = sum(facts["rows_dropped"].values())
    read = f"{facts['rows_read']:,} read"
    if survey.rows_made != facts["rows_read"]:
        read += f" and split into {survey.rows_made:,}"
    return f"{read}; {facts['rows_train']:,} to train on{_repeats(survey)}, {held_out}, {dropped:,} left out"


def _repeats(survey: Survey) -> str:
    """Say what a mixture does not take, or takes again."""
    more = survey.facts["rows_train"] - survey.rows_usable
    if more > 0:
        return f" ({more:,} of them repeats)"
    return f" ({-more:,} more are not in the mixture)" if more < 0 else ""
