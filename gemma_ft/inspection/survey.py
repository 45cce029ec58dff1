"""What there is to know of a run's data before it trains: sampled rows, and numbers over all of them."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_ft.config.checks import check_config
from gemma_ft.config.schema import RunConfig
from gemma_ft.inspection.batches import Batches, count_sequences, expected_padding
from gemma_ft.inspection.left_out import DroppedRows, find_dropped
from gemma_ft.inspection.lengths import Lengths
from gemma_ft.inspection.measures import MEASURES, SHARE_STEPS, Measure, Measured, measure_rows
from gemma_ft.inspection.pieces import Piece, Vocabulary, read_line

if TYPE_CHECKING:
    import datasets

    from gemma_ft.data.parts import Part
    from gemma_ft.data.prepare import PreparedData

_PREVIEW = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRow:
    """A training row, token by token."""

    where: str
    """File and line, or data set and row."""
    pieces: tuple[Piece, ...]
    full_length: int
    """Tokens before the cut."""
    turns: int
    """Learned turns with their end."""
    turns_cut: int
    """Learned turns that lost their end, or all of themselves, to the cut."""

    @property
    def learned(self) -> int:
        """Count the tokens in the loss."""
        return sum(piece.learned for piece in self.pieces)

    @property
    def lost(self) -> int:
        """Count the tokens beyond the cut."""
        return self.full_length - len(self.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class NotableRow:
    """A row that stands out."""

    where: str
    value: float
    """In the unit of its measure."""
    beginning: str
    """The first words that are learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The data of a run as the model will see it."""

    config: RunConfig
    facts: Mapping[str, Any]
    """What data.json will hold."""
    sample: tuple[SampledRow, ...]
    lengths: Lengths
    """Of the training rows before the cut."""
    trained_shares: tuple[int, ...]
    """Training rows by the share of their tokens that is learned, in equal steps from nothing to all."""
    batches: Batches
    notable: tuple[tuple[Measure, tuple[NotableRow, ...]], ...]
    """The longest and the strangest rows, by what is strange about them."""
    dropped: tuple[DroppedRows, ...]
    rows_made: int
    """Rows of the sources, those that are left out included; more than were read where some are split."""
    rows_usable: int
    """Rows that may be trained on; a mixture takes some of them, or some of them twice."""


def inspect(config: RunConfig, *, rows: int = 5) -> Survey:
    """Prepare a run's data as training would, and look at it; the model itself is not loaded.

    Args:
        config: The whole run, as `gemma_ft.compose` returns it.
        rows: How many training rows to show token by token: a sample that the seed chooses.

    Raises:
        GemmaFTError: The run cannot work; the message says why and what to do.
    """
    from gemma_ft.data.prepare import prepare_data
    from gemma_ft.data.tokens.contract import check_tokenizer
    from gemma_ft.modeling.checkpoint import find_checkpoint, load_tokenizer
    from gemma_ft.modeling.libraries import quiet_libraries

    check_config(config)
    quiet_libraries()
    checkpoint = find_checkpoint(config.model)
    tokenizer = load_tokenizer(checkpoint)
    check_tokenizer(tokenizer, checkpoint.path, checkpoint.family)
    data = prepare_data(
        config.dataset,
        tokenizer=tokenizer,
        max_length=config.trainer.max_length,
        seed=config.seed,
        packing=config.trainer.packing,
    )
    return survey_data(data, config, Vocabulary(tokenizer), rows=rows)


def survey_data(data: "PreparedData", config: RunConfig, vocabulary: Vocabulary, *, rows: int) -> Survey:
    """Look at data that is prepared.

    Args:
        data: The data.
        config: The run that it was prepared for.
        vocabulary: That of the tokenizer.
        rows: How many training rows to show token by token.
    """
    measured = measure_rows(data.rows, vocabulary, config.trainer.max_length)
    chosen = random.Random(config.seed).sample(range(data.rows.num_rows), min(rows, data.rows.num_rows))
    return Survey(
        config=config,
        facts=data.facts,
        sample=tuple(_sampled(row, vocabulary) for row in _pick(data.rows, sorted(chosen))),
        lengths=Lengths(measured.full_lengths),
        trained_shares=tuple(measured.trained_shares),
        batches=_batches(data, config, Lengths(measured.lengths)),
        notable=tuple(_notable(data.rows, measured, vocabulary)),
        dropped=tuple(find_dropped(data)),
        rows_made=sum(map(_rows_made, data.parts)),
        rows_usable=sum(int(part.used.sum()) for part in data.parts),
    )


def _rows_made(part: "Part") -> int:
    dropped: Mapping[str, int] = part.train.report["dropped"]
    return int(part.train.rows.num_rows) + sum(dropped.values())


def _pick(rows: "datasets.Dataset", numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    return (rows[number] for number in numbers)


def _sampled(row: Mapping[str, Any], vocabulary: Vocabulary) -> SampledRow:
    return SampledRow(
        where=row["where"],
        pieces=vocabulary.pieces(row["input_ids"], row["labels"]),
        full_length=row["full_length"],
        turns=row["turns"],
        turns_cut=row["turns_cut"],
    )


def _batches(data: "PreparedData", config: RunConfig, lengths: Lengths) -> Batches:
    size, most = config.trainer.micro_batch_size, config.trainer.max_length
    packing = data.facts["packing"]
    sequences = packing["sequences"] if packing else count_sequences(data.rows, most)
    return Batches(
        micro_batch_size=size,
        padding=0.0 if packing else expected_padding(lengths, size),
        row_fill=lengths.mean / most,
        packed_sequences=sequences,
        packed_efficiency=lengths.tokens / (sequences * most),
        fills=_fills(data.train, most) if packing else (),
    )


def _fills(sequences: "datasets.Dataset", most: int) -> tuple[int, ...]:
    counts = [0] * SHARE_STEPS
    for batch in sequences.select_columns(["seq_lengths"]).with_format("arrow").iter(batch_size=1000):
        for lengths in batch["seq_lengths"].to_pylist():
            counts[min(sum(lengths) * SHARE_STEPS // most, SHARE_STEPS - 1)] += 1
    return tuple(counts)


def _notable(
    rows: "datasets.Dataset", measured: Measured, vocabulary: Vocabulary
) -> Iterator[tuple[Measure, tuple[NotableRow, ...]]]:
    for measure in MEASURES:
        found = measured.top[measure.name]
        entries = zip(found, _pick(rows, [number for _, number in found]), strict=True)
        if found:
            yield (
                measure,
                tuple(
                    NotableRow(where=row["where"], value=value, beginning=_beginning(row, vocabulary))
                    for (value, _), row in entries
                ),
            )


def _beginning(row: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """Read the first words that are learned."""
    learned = [number for number in row["labels"] if number >= 0][:_PREVIEW]
    return read_line(vocabulary.pieces(learned, learned), _PREVIEW)
