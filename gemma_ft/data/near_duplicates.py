"""Find rows that are almost alike: MinHash names candidates, the exact Jaccard similarity decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random
from typing import TYPE_CHECKING, Any

from gemma_ft import families
from gemma_ft.config.dataset import NearCopies
from gemma_ft.data.tokens.turns import control_ids, encode_texts
from gemma_ft.errors import DataError

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerFast

    Array = numpy.ndarray[Any, Any]

_WIDTH = 5
"""Tokens of an n-gram."""
_SLOTS = 128
"""Most hash values in the signature of a row."""
_SEED = 1
_RECALL = 0.99
"""Least share of the pairs right at the threshold that become candidates."""
_MARGIN = 0.1
"""Three standard errors of an estimate: candidates this far below the threshold are not compared exactly."""
_MOST_COMPARED = 16
"""Candidates of one row that are compared exactly, most alike first."""
_SAMPLE, _COMMON = 1000, 100
"""Rows of a sample, and in how many of their questions an n-gram must stand to be common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Which rows are almost earlier ones."""

    original: "Array"
    """For each row the number of the earlier row that it is almost alike to, or -1."""
    similarity: "Array"
    """Jaccard similarity of the two, 0 where there is none."""

    @property
    def found(self) -> "Array":
        """Tell for each row whether it is almost an earlier one."""
        mask: Array = self.original >= 0
        return mask

    def pairs(self) -> Iterator[tuple[int, int, float]]:
        """Yield each row found, the earlier row and their similarity, in the order of the rows."""
        for row in self.found.nonzero()[0].tolist():
            yield row, int(self.original[row]), float(self.similarity[row])


def check_library(asked: NearCopies) -> None:
    """Refuse to look for near-duplicates without the library, before any row is read.

    Raises:
        DataError: It is needed and not installed.
    """
    if asked is not NearCopies.ignore and find_spec("rensa") is None:
        raise DataError(f"dataset.near_duplicates={asked} needs the rensa package. Run: pip install rensa")


def find_near_duplicates(
    rows: "Sequence[Array]", tokenizer: "PreTrainedTokenizerFast", *, threshold: float
) -> NearDuplicates:
    """Find the rows that are almost an earlier row, which itself is none of them.

    Two rows are almost alike if the sets of their n-grams are, and those of their answers (of conversations)
    as well: one question with two short answers is two rows. What the template adds is left out, and so is
    what many questions have in common, such as a system message. Exact copies are found too.

    Args:
        rows: Token ids of each row by its number. Rows are read again to be compared; its signature, about
            2 KB, is all that stays of one in memory.
        tokenizer: The tokenizer that the rows were made with.
        threshold: Least Jaccard similarity.
    """
    import numpy as np

    reader = _Reader(rows, tokenizer)
    index = _Index(threshold)
    result = NearDuplicates(original=np.full(len(rows), -1), similarity=np.zeros(len(rows)))
    for number in range(len(rows)):
        row = reader.read(number)
        for earlier in index.candidates(row):
            similarity = row.similarity(reader.read(earlier))
            if similarity >= threshold:
                result.original[number], result.similarity[number] = earlier, similarity
                break
        else:
            index.add(number, row)
    return result


class _Index:
    """Signatures of rows, and which of them may be almost alike."""

    def __init__(self, threshold: float) -> None:
        from rensa import RMinHashLSH

        bands, height = _bands(threshold)
        self._threshold = threshold
        self._slots = bands * height
        self._signatures: dict[int, Any] = {}
        self._bands = RMinHashLSH(threshold=threshold, num_perm=self._slots, num_bands=bands)

    def add(self, number: int, row: "_Row") -> None:
        """Add a row that has n-grams."""
        if len(row.all):
            self._signatures[number] = self._sign(row)
            self._bands.insert(number, self._signatures[number])

    def candidates(self, row: "_Row") -> list[int]:
        """Return the rows that may be almost this one, most alike first."""
        if not len(row.all):
            return []
        signature = self._sign(row)
        alike = {
            number: signature.jaccard(self._signatures[number]) for number in self._bands.query(signature)
        }
        near = [number for number, estimate in alike.items() if estimate >= self._threshold - _MARGIN]
        return sorted(near, key=lambda number: (-alike[number], number))[:_MOST_COMPARED]

    def _sign(self, row: "_Row") -> Any:
        from rensa import RMinHash

        signature = RMinHash(num_perm=self._slots, seed=_SEED)
        signature.update(row.all.view("V8").tolist())
        return signature


def _bands(threshold: float) -> tuple[int, int]:
    """Return how many bands the signature has and the height of each: as high as the recall allows."""
    for height in range(32, 1, -1):
        bands = _SLOTS // height
        if 1 - (1 - threshold**height) ** bands >= _RECALL:
            return bands, height
    return _SLOTS, 1


@dataclass(frozen=True, slots=True)
class _Row:
    """Sorted hashes of the n-grams of a row."""

    all: "Array"
    answers: "Array"

    def similarity(self, other: "_Row") -> float:
        """Return the Jaccard similarity of two rows or of their answers, whichever is less."""
        return min(_jaccard(self.all, other.all), _jaccard(self.answers, other.answers))


def _jaccard(one: "Array", other: "Array") -> float:
    import numpy as np

    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1) if len(one) or len(other) else 1.0


class _Reader:
    """Reads rows as sets of n-grams, without what all conversations have in common."""

    def __init__(self, rows: "Sequence[Array]", tokenizer: "PreTrainedTokenizerFast") -> None:
        import numpy as np

        control = control_ids(tokenizer)
        self._rows = rows
        self._control = np.array(list(control.values()))
        self._start, self._end = control[families.START_OF_TURN], control[families.END_OF_TURN]
        user, model = encode_texts([families.USER_HEADER, families.MODEL_HEADER], tokenizer)
        self._user, self._model = np.array([self._start, *user]), np.array([self._start, *model])
        self._common = self._find_common()

    def read(self, number: int) -> _Row:
        """Read a row by its number."""
        import numpy as np

        asked, answered = self._words(number)
        questions, answers = _ngrams(asked), _ngrams(answered)
        if len(self._common):
            questions = questions[~np.isin(questions, self._common, assume_unique=True)]
        return _Row(np.union1d(questions, answers), answers)

    def _words(self, number: int) -> "tuple[Array, Array]":
        """Take a row apart into what the user says, and what the model says or plain text holds."""
        import numpy as np

        ids = np.asarray(self._rows[number])
        asked: list[Array] = [ids[:0]]
        answered: list[Array] = [ids[:0]]
        starts, word = np.flatnonzero(ids == self._start), ~np.isin(ids, self._control)
        word[1:] &= ids[:-1] != self._end  # the line break after it
        for turn, kept in zip(np.split(ids, starts), np.split(word, starts), strict=True):
            user = np.array_equal(turn[: len(self._user)], self._user)
            if user or np.array_equal(turn[: len(self._model)], self._model):
                kept[: len(self._user if user else self._model)] = False
            (asked if user else answered).append(turn[kept])
        return np.concatenate(asked), np.concatenate(answered)

    def _find_common(self) -> "Array":
        """Find the n-grams that stand in the questions of many rows."""
        import numpy as np

        size = min(len(self._rows), _SAMPLE)
        places = Random(_SEED).sample(range(len(self._rows)), size)
        sample = [_ngrams(self._words(place)[0]) for place in places]
        ngrams, counts = np.unique(np.concatenate([np.zeros(0, "<u8"), *sample]), return_counts=True)
        common: Array = ngrams[counts >= _COMMON]
        return common


def _ngrams(ids: "Array") -> "Array":
    """Hash the distinct n-grams of a text, sorted; one that is shorter than an n-gram is one of its own."""
    import numpy as np

    if not len(ids):
        return np.zeros(0, "<u8")
    width = min(len(ids), _WIDTH)
    tokens = ids.astype("<u8")
    hashes = np.full(len(ids) - width + 1, width, "<u8")
    for place in range(width):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[place : place + len(hashes)]
    # The finalizer of MurmurHash3, since the high bits of the sum barely know its last token.
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(multiplier)
    return np.unique(hashes ^ (hashes >> np.uint64(33)))
