"""A survey as text: sampled rows first, totals last, where a reader of a terminal looks."""

from collections.abc import Iterator, Sequence

from gemma_ft.inspection import summary
from gemma_ft.inspection.ink import Ink, columns
from gemma_ft.inspection.lengths import Bin
from gemma_ft.inspection.notes import find_notes
from gemma_ft.inspection.pieces import Kind, Look, Part, Piece, show, split_piece
from gemma_ft.inspection.survey import Survey

_BOLD, _DIM, _GREEN, _MAGENTA, _YELLOW = 1, 2, 32, 35, 33
_LEARNED, _UNLEARNED = "+ ", "  "
_BAR = 40


def render(survey: Survey, ink: Ink) -> str:
    """Write a survey as text.

    Args:
        survey: What was found.
        ink: How to write.
    """
    return "\n".join([*_sample(survey, ink), *_totals(survey, ink)])


def _sample(survey: Survey, ink: Ink) -> Iterator[str]:
    yield ink.paint(summary.title(survey), _BOLD)
    if survey.sample:
        yield from _legend(ink)
    for number, row in enumerate(survey.sample, start=1):
        yield ""
        place = ink.paint(f"row {number} of {len(survey.sample)}  {show(row.where)}", _BOLD)
        yield place
        yield ink.paint(summary.row_line(row), _DIM)
        yield from token_lines(row.pieces, ink)
        if row.lost:
            yield ink.paint(f"{ink.signs.rule * 3} cut here, {row.lost:,} tokens before the end", _DIM)
    yield ""


def _legend(ink: Ink) -> Iterator[str]:
    signs = ink.signs
    shades = "shades tell tokens apart" if ink.colour else f"{signs.between} divides tokens"
    yield f"{ink.paint('+ lines are learned', _BOLD, _GREEN)}, others are only read; {shades};"
    yield f"{signs.newline} is a line break (other lines go on), {signs.space} a space, {signs.tab} a tab"


def token_lines(pieces: Sequence[Piece], ink: Ink) -> Iterator[str]:
    """Write a row's tokens; each line begins with a plus where it is learned.

    A line ends at each line break of the data, shown by its sign, and where learning begins or ends.

    Args:
        pieces: The tokens.
        ink: How to write.
    """
    line = _Line(ink)
    escaped = frozenset() if ink.colour else ink.signs.escaped()
    before: Piece | None = None
    for number, piece in enumerate(pieces):
        if before is not None and before.learned is not piece.learned:
            yield from line.end()
        if line.used and not ink.colour:
            line.write(ink.signs.between)
        line.learned = piece.learned
        parts = split_piece(piece, before, escaped=escaped)
        if line.is_full(sum(columns(part.text) for part in parts)):
            yield from line.end()
        for part in parts:
            line.write(_printed(part, ink), *_look(piece, part, odd=number % 2 == 1))
            for _ in range(len(part.text) if part.look is Look.newline else 0):
                yield from line.end(always=True)
        before = piece
    yield from line.end()


def _printed(part: Part, ink: Ink) -> str:
    match part.look:
        case Look.newline:
            return ink.signs.newline * len(part.text)
        case Look.space:
            return part.text.replace(" ", ink.signs.space).replace("\t", ink.signs.tab)
        case _:
            return part.text


def _look(piece: Piece, part: Part, *, odd: bool) -> tuple[int, ...]:
    shade: tuple[int, ...] = (_DIM,) if odd else ()
    if piece.learned:
        shade = (_GREEN,) if odd else (_BOLD, _GREEN)
    if piece.kind is Kind.control:
        return (_BOLD, _MAGENTA) if piece.learned else (_MAGENTA,)
    if piece.kind is Kind.byte or part.look is Look.escape:
        return (_YELLOW, *((_DIM,) if odd else ()))
    if part.look is Look.newline:
        return (_GREEN, _DIM) if piece.learned else (_DIM,)
    return shade


class _Line:
    """The line that is being written."""

    def __init__(self, ink: Ink) -> None:
        self._ink = ink
        self._parts: list[str] = []
        self._columns = 0
        self.learned = False

    @property
    def used(self) -> bool:
        """Whether anything stands on it."""
        return bool(self._parts)

    def is_full(self, more: int) -> bool:
        """Tell whether something has no more place on it."""
        width = self._ink.width
        return width is not None and self.used and self._columns + more + len(_LEARNED) >= width

    def write(self, text: str, *codes: int) -> None:
        """Add a part."""
        self._columns += columns(text)
        self._parts.append(self._ink.paint(text, *codes))

    def end(self, *, always: bool = False) -> Iterator[str]:
        """Give the line out and begin the next one."""
        if self._parts or always:
            sign = self._ink.paint(_LEARNED, _BOLD, _GREEN) if self.learned else _UNLEARNED
            yield (sign + "".join(self._parts)).rstrip() if not self._parts else sign + "".join(self._parts)
        self._parts, self._columns = [], 0


def _totals(survey: Survey, ink: Ink) -> Iterator[str]:
    for entry in summary.totals(survey):
        first, *more = ink.wrap(entry.text, indent=10)
        yield f"{ink.paint(f'{entry.label:9}', _BOLD)} {first}"
        yield from (f"{'':9} {line}" for line in more)
    yield from _mixture(survey, ink)
    yield from _dropped(survey, ink)
    yield from _histogram(survey, ink)
    yield from _notable(survey, ink)
    notes = list(find_notes(survey))
    if notes:
        yield ""
        yield ink.paint("worth a look", _BOLD)
        for note in notes:
            first, *more = ink.wrap(note, indent=4)
            yield f"  - {first}"
            yield from (f"    {line}" for line in more)


def _mixture(survey: Survey, ink: Ink) -> Iterator[str]:
    shares = summary.mixture_rows(survey.facts)
    if not shares:
        return
    yield ""
    asked = survey.config.dataset.mixture_weights
    yield ink.paint(f"mixture: weights are shares of {asked}", _BOLD)
    yield f"  {'weight':>7}  {'tokens':>22}  {'rows':>22}"
    for name, weight, tokens, rows in shares:
        yield f"  {weight:>7}  {tokens:>22}  {rows:>22}  {name}"


def _dropped(survey: Survey, ink: Ink) -> Iterator[str]:
    for dropped in survey.dropped:
        yield ""
        yield ink.paint(f"left out: {summary.cause_line(dropped)}", _BOLD)
        yield from (f"  {show(message)}" for message in dropped.messages)
        if 0 < len(dropped.messages) < dropped.rows:
            yield f"  ... and {dropped.rows - len(dropped.messages):,} more"


def _histogram(survey: Survey, ink: Ink) -> Iterator[str]:
    cut = survey.config.trainer.max_length
    bins = survey.lengths.bins(cut)
    most = max(each.rows for each in bins)
    names = [_range(each) for each in bins]
    width = max(map(len, names))
    longest = _BAR if ink.width is None else min(_BAR, max(ink.width - width - 12, 8))
    yield ""
    yield ink.paint("length in tokens, before the cut", _BOLD)
    for each, name in zip(bins, names, strict=True):
        if each.above == cut:
            yield f"  {ink.signs.rule * 3} trainer.max_length={cut}: what is below is cut"
        bar = ink.bar(each.rows / most, longest)
        painted = ink.paint(f"{bar:{longest}}", *((_DIM,) if each.above >= cut else (_GREEN,)))
        yield f"  {name:>{width}}  {painted}  {each.rows:,}"
    if survey.lengths.longest <= cut:
        yield f"  {ink.signs.rule * 3} trainer.max_length={cut}: no row is longer"


def _range(each: Bin) -> str:
    return f"over {each.above:,}" if each.up_to is None else f"{each.above + 1:,}-{each.up_to:,}"


def _notable(survey: Survey, ink: Ink) -> Iterator[str]:
    for measure, rows in survey.notable:
        yield ""
        yield ink.paint(measure.title, _BOLD)
        width = max(len(show(row.where)) for row in rows)
        for row in rows:
            value = summary.value_of(measure, row.value)
            words = ink.paint(ink.fit(row.beginning, indent=15 + width), _DIM)
            yield f"  {value:>9}  {show(row.where):{width}}  {words}"
