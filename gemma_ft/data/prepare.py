"""From the configured rows to the token tables that training and evaluation read."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.data.facts import describe_data
from gemma_ft.data.holdout import pick
from gemma_ft.data.mixture import Ingredient, mix
from gemma_ft.data.packing import TOKEN_COLUMNS, pack
from gemma_ft.data.parts import Part, check_left, find_copies, load_parts, set_aside, whole_digest
from gemma_ft.data.store import StoredTokens
from gemma_ft.data.tokens.encoding import TokenRules

if TYPE_CHECKING:
    import datasets
    import numpy
    from transformers import PreTrainedTokenizerFast

    Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """What training reads."""

    rows: "datasets.Dataset"
    """The training rows one by one, in order, with the columns of `tokenise.COLUMNS`."""
    train: "datasets.Dataset"
    """The same as the trainer reads them: input_ids and labels, packed with seq_lengths."""
    held_out: "datasets.Dataset | None"
    """Rows or packed sequences that are never trained on."""
    held_out_rows: "datasets.Dataset | None"
    """The same rows one by one."""
    facts: dict[str, Any]
    """Where the rows came from, how many there are and what they hash to; for data.json."""
    dropped: tuple[Path, ...]
    """JSON Lines of the rows that could not be used: where, cause, message."""

    parts: tuple[Part, ...]
    """The sources, with what became of each row."""

    def write_dropped(self, file: Path) -> None:
        """Write all rows that were left out into one file; none where there are none."""
        beside = file.with_name(f".{file.name}")
        with beside.open("w", encoding="utf-8") as target:
            for source in self.dropped:
                with source.open(encoding="utf-8") as lines:
                    shutil.copyfileobj(lines, target)
            for part in self.parts:
                target.writelines(json.dumps(row) + "\n" for row in part.left_out_rows())
        beside.replace(file)
        if not file.stat().st_size:
            file.unlink()


def prepare_data(
    dataset: DatasetConfig,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    max_length: int,
    seed: int,
    packing: bool = False,
) -> PreparedData:
    """Read, normalise, tokenise, split, mix and pack the rows of a run.

    Held out are the rows of `eval_split`, or else a share of the distinct rows that content and seed choose.
    A row whose content is held out is never trained on, wherever it stands (but for `dataset.overlap=keep`).

    Args:
        dataset: Which rows, and what is learned from them.
        tokenizer: A tokenizer that `check_tokenizer` let pass.
        max_length: Longest row, or packed sequence, in tokens.
        seed: Chooses the rows that are held out, and mixes.
        packing: Fill sequences with several rows.

    Raises:
        DataError: A row cannot be used, or nothing is left to learn.
        HubError: The hub is needed and does not give the data set.
    """
    rules = TokenRules.of(dataset, max_length)
    parts = load_parts(dataset, tokenizer, rules)
    set_aside(parts, dataset, seed)
    find_copies(parts, dataset, tokenizer)
    for part in parts:
        check_left(part, dataset, rules)
    rows, origins = _training_rows(parts, dataset, seed)
    held_out_rows = _held_out_rows(parts, dataset, seed)
    folder = parts[0].train.dropped.parent
    train = _as_read(rows, max_length, folder, packing=packing)
    packed = train if packing else None
    facts = describe_data(dataset, parts, rows, origins, held_out_rows, packed, rules, seed)
    held_out = None
    if held_out_rows is not None:
        held_out = _as_read(held_out_rows, max_length, folder, packing=packing)
    dropped = [stored.dropped for part in parts for stored in (part.train, part.held_out) if stored]
    return PreparedData(
        rows=rows,
        train=train,
        held_out=held_out,
        held_out_rows=held_out_rows,
        facts=facts,
        dropped=tuple(dropped),
        parts=tuple(parts),
    )


def _as_read(rows: "datasets.Dataset", max_length: int, folder: Path, *, packing: bool) -> "datasets.Dataset":
    """Give rows the form that the trainer reads."""
    return pack(rows, max_length, folder) if packing else rows.select_columns(list(TOKEN_COLUMNS))


def _training_rows(
    parts: Sequence[Part], dataset: DatasetConfig, seed: int
) -> tuple["datasets.Dataset", "Array"]:
    """Return the rows to train on, and the number of the source of each."""
    import numpy as np

    if not dataset.mixture:
        used = np.flatnonzero(parts[0].used)
        return _take(parts[0].train.rows, used), np.zeros(len(used), np.int64)
    lengths = {part.name: part.train.numbers("length") for part in parts}
    places = {part.name: np.flatnonzero(part.used) for part in parts}
    ingredients = {
        part.name: Ingredient(
            rows=places[part.name],
            digests=[whole_digest(digest) for digest in part.digests[places[part.name]]],
            tokens=lengths[part.name][places[part.name]],
            weight=part.weight,
        )
        for part in parts
    }
    order = mix(
        ingredients, weights=dataset.mixture_weights, stopping_strategy=dataset.stopping_strategy, seed=seed
    )
    starts = dict(zip(lengths, np.cumsum([0, *map(len, lengths.values())]), strict=False))
    chosen = _take_from([part.train for part in parts], np.array([starts[name] + row for name, row in order]))
    numbers = {part.name: number for number, part in enumerate(parts)}
    return chosen, np.array([numbers[name] for name, _ in order])


def _held_out_rows(parts: Sequence[Part], dataset: DatasetConfig, seed: int) -> "datasets.Dataset | None":
    """Pick the rows that are evaluated, a fair sample of all that are held out."""
    import numpy as np

    stored = [part.held_out or part.train for part in parts]
    candidates = []
    start = 0
    for part, tokens in zip(parts, stored, strict=True):
        digests = part.digests if tokens is part.train else tokens.digests()
        wanted = part.aside if tokens is part.train else np.ones(len(digests), bool)
        candidates += [(start + place, whole_digest(digests[place])) for place in np.flatnonzero(wanted)]
        start += len(digests)
    picked = pick(candidates, dataset.max_eval_rows, seed)
    return _take_from(stored, np.array([place for place, _ in picked])) if picked else None


def _take_from(stored: Sequence[StoredTokens], places: "Array") -> "datasets.Dataset":
    import datasets

    if len(stored) == 1:
        return _take(stored[0].rows, places)

    together = datasets.concatenate_datasets([tokens.rows for tokens in stored])
    together._fingerprint = _fingerprint(" ".join(tokens.key for tokens in stored))
    return _take(together, places)


def _take(rows: "datasets.Dataset", places: "Array") -> "datasets.Dataset":
    import numpy as np

    if np.array_equal(places, np.arange(rows.num_rows)):
        return rows
    chosen = hashlib.sha256(places.astype("<i8").tobytes()).hexdigest()
    return rows.select(places, new_fingerprint=_fingerprint(f"{rows._fingerprint} {chosen}"))


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
