"""What a survey says, in words: the same on a terminal and on a page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemma_ft.config.dataset import Copies, LossTarget, NearCopies
from gemma_ft.inspection import row_counts
from gemma_ft.inspection.left_out import DroppedRows
from gemma_ft.inspection.lengths import Lengths
from gemma_ft.inspection.measures import Measure
from gemma_ft.inspection.pieces import show
from gemma_ft.inspection.survey import SampledRow, Survey

_DIGITS_OF_HASH = 12


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the totals."""

    label: str
    text: str


def percent(share: float) -> str:
    """Write a share so that little is not nothing and almost all is not all."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0, 1) or 0.1 <= share < 0.995 else f"{share:.1%}"


def rows_of(number: int) -> str:
    """Write a number of rows."""
    return count_of(number, "row")


def count_of(number: int, noun: str) -> str:
    """Write a number of something."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def title(survey: Survey) -> str:
    """Name what is looked at."""
    dataset = survey.config.dataset
    name = " + ".join(dataset.mixture) or dataset.path
    return show(f"{name}, as {survey.config.model.path} will see it")


def row_line(row: SampledRow) -> str:
    """Say how long a row is and what of it is learned."""
    share = percent(row.learned / len(row.pieces))
    words = [f"{count_of(len(row.pieces), 'token')}, {row.learned:,} learned ({share})"]
    if row.lost:
        words.append(f"cut: {count_of(row.lost, 'token')} of {row.full_length:,} lost")
    if row.turns_cut:
        words.append(f"{count_of(row.turns_cut, 'learned turn')} without an end")
    return "; ".join(words)


def figures(survey: Survey) -> Iterator[tuple[str, str, str]]:
    """Give the numbers to see first: value, name, and what to know of it."""
    facts = survey.facts
    dropped = sum(facts["rows_dropped"].values())
    yield (
        f"{facts['rows_train']:,}",
        "rows to train on",
        row_counts.origin(survey),
    )
    yield f"{facts['rows_held_out']:,}", "rows held out", ""
    yield f"{facts['tokens']:,}", "tokens", ""
    yield percent(facts["trained_share"]), "of them learned", f"{facts['trained_tokens']:,} tokens"
    yield f"{facts['rows_cut']:,}", "rows cut", f"at {survey.config.trainer.max_length:,} tokens"
    if dropped:
        yield f"{dropped:,}", "rows left out", ""


def totals(survey: Survey) -> Iterator[Entry]:
    """Say everything that is counted."""
    facts = survey.facts
    yield Entry("data", _source(survey))
    yield Entry("rows", row_counts.rows_line(survey))
    if facts["unused_columns"]:
        yield Entry("columns", show(f"not read: {', '.join(facts['unused_columns'])}"))
    share = percent(facts["trained_share"])
    yield Entry("tokens", f"{facts['tokens']:,}, {facts['trained_tokens']:,} of them learned ({share})")
    yield Entry("learned", loss_target(survey))
    yield Entry("length", _length(survey))
    if facts["turns_learned"] or facts["turns_cut"]:
        yield Entry("turns", _turns(facts))
    if facts["system_messages"]:
        folded = count_of(facts["system_messages"], "system message")
        yield Entry("system", f"{folded} put before the first user turn, since Gemma has no system role")
    yield Entry("batches", batch_line(survey))
    yield Entry("copies", "; ".join(_copies(survey)))
    yield Entry("contract", _contract(facts["contract"]))


def _source(survey: Survey) -> str:
    facts = survey.facts
    if facts["source"] == "mixture":
        parts = [f"{name}: {_place(part)}" for name, part in facts["sources"].items()]
        return show("; ".join(parts))
    return show(_place(facts))


def _place(source: Mapping[str, Any]) -> str:
    words = [str(source["path"])]
    words += [str(source["config"])] if source["config"] else []
    words.append(f"split {source['split']}")
    words += [f"eval_split {source['eval_split']}"] if source["eval_split"] else []
    words += [f"commit {source['revision'][:_DIGITS_OF_HASH]}"] if source["revision"] else []
    return ", ".join([*words, f"sha256 {source['data_sha256'][:_DIGITS_OF_HASH]}"])


def cause_line(dropped: DroppedRows) -> str:
    """Say how many rows are left out, and why."""
    noun = "held-out row" if dropped.held_out else "row"
    return f"{count_of(dropped.rows, noun)}, {show(dropped.cause)}"


def _length(survey: Survey) -> str:
    cut = cut_line(survey) if survey.facts["rows_cut"] else "none is cut"
    return f"{usual_lengths(survey.lengths)}; {cut}"


def usual_lengths(lengths: Lengths) -> str:
    """Say how long rows are."""
    return (
        f"median {lengths.quantile(0.5):,}, mean {lengths.mean:,.1f}, 95% up to {lengths.quantile(0.95):,}, "
        f"longest {lengths.longest:,}"
    )


def cut_line(survey: Survey) -> str:
    """Say what lies beyond trainer.max_length."""
    lengths, cut = survey.lengths, survey.config.trainer.max_length
    lost = lengths.tokens_beyond(cut)
    rows = survey.facts["rows_cut"]
    return (
        f"{rows_of(rows)} ({percent(rows / lengths.rows)}) longer than trainer.max_length={cut}, "
        f"losing {count_of(lost, 'token')} ({percent(lost / lengths.tokens)})"
    )


def _turns(facts: Mapping[str, Any]) -> str:
    learned = f"{facts['turns_learned']:,} learned with their <end_of_turn>"
    return f"{learned}, {facts['turns_cut']:,} lost it to the cut" if facts["turns_cut"] else learned


def batch_line(survey: Survey) -> str:
    """Say what the batches hold."""
    batches, rows = survey.batches, survey.lengths.rows
    if survey.facts["packing"]:
        return f"{rows_of(rows)} packed into {packed_line(survey)}"
    size = batches.micro_batch_size
    cost = f"{percent(batches.padding)} of what is computed is padding" if size > 1 else "nothing is padded"
    return f"micro-batches of {rows_of(size)}, {cost}; packing would make {packed_line(survey)}"


def packed_line(survey: Survey) -> str:
    """Say what packing makes, or would make."""
    batches = survey.batches
    return f"{count_of(batches.packed_sequences, 'sequence')}, {percent(batches.packed_efficiency)} full"


def _copies(survey: Survey) -> Iterator[str]:
    facts, dataset = survey.facts, survey.config.dataset
    fate = {Copies.keep: "kept", Copies.drop: "left out"}
    copies = facts["duplicates"]
    yield f"{copies:,} exact" + (f" ({fate[dataset.duplicates]})" if copies else "")
    overlap = facts["overlap"]
    if overlap or _has_eval_split(facts):
        yield f"{overlap:,} in eval_split as well" + (f" ({fate[dataset.overlap]})" if overlap else "")
    if facts["near_duplicates"] is None:
        yield "near ones not looked for (dataset.near_duplicates=report)"
    else:
        dropped = dataset.near_duplicates is NearCopies.drop
        yield f"{facts['near_duplicates']:,} near ones" + (" (left out)" if dropped else "")


def _has_eval_split(facts: Mapping[str, Any]) -> bool:
    sources = facts["sources"].values() if facts["source"] == "mixture" else [facts]
    return any(source["eval_split"] for source in sources)


def _contract(contract: Mapping[str, Any]) -> str:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id"}
    names |= {"start_of_turn": "start_of_turn_id", "end_of_turn": "end_of_turn_id"}
    words = [", ".join(f"<{name}> is {contract[key]}" for name, key in names.items() if key in contract)]
    compared = contract.get("rows_compared", 0)
    if compared:
        words.append(f"{count_of(compared, 'conversation')} compared with the chat template, no id differs")
    if contract.get("departure"):
        words.append(f"but {contract['departure']}")
    return show("; ".join(words))


def mixture_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """List the sources of a mixture: name, weight asked for, tokens and rows that it gave."""
    return [
        (
            show(name),
            percent(part["weight"]),
            f"{part['tokens']:,} ({percent(part['tokens_share'])})",
            f"{part['rows']:,} ({percent(part['rows_share'])})",
        )
        for name, part in (facts["mixture"] or {}).items()
    ]


def value_of(measure: Measure, value: float) -> str:
    """Write a measured value in its unit."""
    match measure.unit:
        case "tokens":
            return f"{value:,.0f}"
        case "share":
            return percent(value)
        case _:
            return f"{value:.1f} bits"


def loss_target(survey: Survey) -> str:
    """Say what is learned."""
    if survey.facts["plain_text"]:
        return "plain text, learned whole"
    return {
        LossTarget.assistant: "every assistant turn is learned",
        LossTarget.last_turn: "the last assistant turn is learned",
        LossTarget.all: "every token is learned",
    }[survey.config.dataset.loss_on]
