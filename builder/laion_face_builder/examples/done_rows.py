"""Track which rows of a walk are done: all up to one row, and beyond it those whose pictures came first.

Rows are pulled in the order of the walk and done in any order. What is done is stored as two things: the last row up to
which all are done without a gap, and ranges of the rows beyond it, which lie within the look-ahead. Both go into a
stream's state. The ranges become text only when the state is copied: they change with every row.

    "0/45:7,9-12;2/40:0-3"      of part 0 with 45 rows rows 7 and 9 to 12, of part 2 with 40 rows rows 0 to 3
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from laion_face_builder.errors import StateConflict
from laion_face_builder.examples.rows import RowMark, Step


@dataclass(slots=True)
class _Run:
    """Rows of one part that follow each other in the walk and are done: their places in the walk, and both ends."""

    start: int
    stop: int
    first: RowMark
    last: RowMark

    def goes_on_with(self, other: _Run) -> bool:
        """Say whether `other` begins where this run ends."""
        here, there = self.last, other.first
        return self.stop == other.start and (here.part, here.row + 1) == (there.part, there.row)


class Beyond:
    """The ranges of done rows, as they are when it is asked; copied or pickled it becomes their text."""

    def __init__(self, rows: DoneRows) -> None:
        self._rows = rows

    def __str__(self) -> str:
        return self._rows.beyond

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class DoneRows:
    """Keeps track of which rows of one walk are done.

    Args:
        beyond: the ranges of the earlier stream that this one continues: their rows are left out.
        note: called with each row up to which, without a gap, all are done.
    """

    def __init__(self, beyond: str, note: Callable[[RowMark], object]) -> None:
        self._note = note
        self._left_out: dict[tuple[int, int], int] = {}
        self._rows_of: dict[int, int] = {}
        for part, rows, first, last in _read(beyond):
            self._left_out[part, first], self._rows_of[part] = last, rows
        self._under_way: dict[int, int] = {}
        self._pulled = self._low = 0
        self._starts: list[int] = []
        self._runs: list[_Run] = []

    def still_to_do(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Give those of `steps` that an earlier stream has not done.

        Raises:
            StateConflict: a part has another number of rows than it had then.
        """
        for step in steps:
            number, self._pulled = self._pulled, self._pulled + 1
            if self._left_out and self._was_done(step.mark):
                self._finish(number, step.mark)
            else:
                self._under_way[step.key] = number
                yield step

    def finish(self, step: Step) -> None:
        """Mark a step that `still_to_do` gave as done."""
        self._finish(self._under_way.pop(step.key), step.mark)

    @property
    def beyond(self) -> str:
        """Text of the ranges of done rows beyond the row that `note` was last called with."""
        ranges = [(run.first.part, run.first.rows, run.first.row, run.last.row) for run in self._runs]
        left = ((part, self._rows_of[part], first, last) for (part, first), last in self._left_out.items())
        return _written([*ranges, *left])

    def _was_done(self, mark: RowMark) -> bool:
        if self._rows_of.get(mark.part, mark.rows) != mark.rows:
            raise StateConflict(
                f"state of a stream: part {mark.part} is another one: the index had {self._rows_of[mark.part]:,} rows "
                f"then, and has {mark.rows:,} now. Use the index that the state was made with, or start without the "
                "state."
            )
        # A range is met at its first row, since its rows follow each other in the walk.
        last = self._left_out.pop((mark.part, mark.row), None)
        if last is not None and last > mark.row:
            self._left_out[mark.part, mark.row + 1] = last
        return last is not None

    def _finish(self, number: int, mark: RowMark) -> None:
        if number != self._low:
            self._insert(_Run(number, number + 1, mark, mark))
            return
        self._low += 1
        while self._runs and self._starts[0] == self._low:
            run = self._runs.pop(0)
            del self._starts[0]
            self._low, mark = run.stop, run.last
        self._note(mark)

    def _insert(self, run: _Run) -> None:
        at = bisect(self._starts, run.start)
        if at < len(self._runs) and run.goes_on_with(self._runs[at]):
            after = self._runs.pop(at)
            del self._starts[at]
            run.stop, run.last = after.stop, after.last
        if at and self._runs[at - 1].goes_on_with(run):
            before = self._runs[at - 1]
            before.stop, before.last = run.stop, run.last
        else:
            self._runs.insert(at, run)
            self._starts.insert(at, run.start)


def _written(ranges: Iterable[tuple[int, int, int, int]]) -> str:
    """Write ranges of (part, its rows, first row, last row) as text."""
    by_part: dict[tuple[int, int], list[str]] = {}
    for part, rows, first, last in ranges:
        by_part.setdefault((part, rows), []).append(str(first) if first == last else f"{first}-{last}")
    return ";".join(f"{part}/{rows}:{','.join(found)}" for (part, rows), found in by_part.items())


def _read(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Read the ranges from the text that `_written` gave."""
    for group in filter(None, text.split(";")):
        head, ranges = group.split(":")
        part, rows = map(int, head.split("/"))
        for one in ranges.split(","):
            first, _, last = one.partition("-")
            yield part, rows, int(first), int(last or first)
