"""The state of a stream: what it holds, and which streams can resume from it.

A state names the last index row that is done, whatever became of it, and the sequence of shards that led there. One
in the index's own order, read as a whole, can be resumed under any shards_per_part: what is left are the rows after
that one. In order of arrival rows beyond it are done, too: the state names them, and a stream of either order leaves
them out. Any other sequence can only be resumed as it was: other parts, another share, another order or number of
shards are refused by name. Filters and the treatment of failed pictures may change: they decide about rows that are
still to come.

A state is flat and of plain values, for `datasets` nests it in its own, copies it, and loads it key by key over that of
the new stream.

Rows are pulled in the order of the walk and done in any order. What is done is stored as two things: the last row up to
which all are done without a gap, and ranges of the rows beyond it, which lie within the look-ahead. Both go into a
stream's state. The ranges become text only when the state is copied: they change with every row.

    "0/45:7,9-12;2/40:0-3"      of part 0 with 45 rows rows 7 and 9 to 12, of part 2 with 40 rows rows 0 to 3
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laion_face_builder.errors import StateConflict
from laion_face_builder.examples._compat import FORGETS_RESUMED, VERSION, State
from laion_face_builder.examples.walk import MarkedRow, Plan, Position, RowMark, Shard
from laion_face_builder.files import digest
from laion_face_builder.log import logger


@dataclass(slots=True)
class _RowRun:
    """Rows of one part that follow each other in the walk and are done: their places in the walk, and both ends."""

    start: int
    stop: int
    first: RowMark
    last: RowMark

    def goes_on_with(self, other: _RowRun) -> bool:
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
        self._runs: list[_RowRun] = []

    def still_to_do(self, steps: Iterable[MarkedRow]) -> Iterator[MarkedRow]:
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

    def finish(self, step: MarkedRow) -> None:
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
            self._insert(_RowRun(number, number + 1, mark, mark))
            return
        self._low += 1
        while self._runs and self._starts[0] == self._low:
            run = self._runs.pop(0)
            del self._starts[0]
            self._low, mark = run.stop, run.last
        self._note(mark)

    def _insert(self, run: _RowRun) -> None:
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


#: Version of the state's form. The first had no number: it counted shards, and rows in the shard. The second had no
#: `beyond`.
FORMAT = 3
_READ = (2, FORMAT)
IN_ORDER = "that of the index"


@dataclass(frozen=True)
class ShardSequence:
    """Which shards a stream goes through, in which order.

    Attributes:
        parts: of the dataset, such as "0,2".
        share: which one of those that ranks and workers got, such as "0 of 4"; empty if there is one only.
        shards_per_part: into how many ranges a part's rows are cut.
        order: of the shards: IN_ORDER if they are all there and one after the other, else a digest.
    """

    parts: str
    share: str
    shards_per_part: int
    order: str

    @classmethod
    def of(cls, plan: Plan, shards: Sequence[Shard], share: str) -> ShardSequence:
        """Give the sequence of a stream over `shards`."""
        count = shards[0].of if shards else plan.options.shards_per_part
        whole = [Shard(part, number, count) for part in plan.options.parts for number in range(count)]
        order = IN_ORDER if list(shards) == whole else digest([list(vars(shard).values()) for shard in shards])[:12]
        return cls(",".join(map(str, plan.options.parts)), share, count, order)

    def require(self, made: State) -> None:
        """Refuse a state whose sequence this one cannot resume.

        Raises:
            StateConflict: names what differs, and both values.
        """
        if made["format"] not in _READ:
            raise _conflict("format", made["format"], FORMAT, "Update the older one of the two programs.")
        if made["order"] == self.order == IN_ORDER and made["parts"] == self.parts:
            return
        for name, way_out in _WAYS_OUT.items():
            if made[name] != getattr(self, name):
                raise _conflict(name, made[name], getattr(self, name), way_out)


_WAYS_OUT = {
    "parts": "Use the same parts.",
    "share": "Use the same number of ranks and DataLoader workers, and give each rank its own state.",
    "shards_per_part": "Use the same shards_per_part: only a stream that is neither shuffled nor shared out can go on "
    "with another.",
    "order": "Shuffle with the same seed, and say set_epoch with the same epoch.",
}


def _conflict(name: str, made: Any, here: Any, way_out: str) -> StateConflict:
    return StateConflict(
        f"state of a stream: {name} was {made or 'the whole'} when it was made, and is {here or 'the whole'} here. "
        f"{way_out} Or start without the state."
    )


def new_state(kind: str, sequence: ShardSequence) -> State:
    """Make the state of a stream of class `kind` that has not begun.

    `part`, `row`, `sample_id`, `rows`: the last row up to which all are done, see `RowMark`. `beyond`: rows after it
    that are done, too, see `DoneRows`. `yielded`: examples so far.
    `is_replayed`: see `ExampleStream.load_state_dict`. `shard_idx` and `shard_example_idx` are set in states of earlier
    versions only.
    """
    return {
        "type": kind,
        "format": FORMAT,
        **asdict(sequence),
        **dict.fromkeys(RowMark._fields),
        "beyond": "",
        "yielded": 0,
        "is_replayed": False,
        "shard_idx": None,
        "shard_example_idx": None,
    }


class LiveState(State):
    """The state of a stream that iterates, or is about to; copied or pickled it becomes a plain dict.

    Where `datasets` makes batches, it loads the right state and then, over it, an earlier one: to read the beginning of
    a batch again and leave out what it has given of it. This class remembers, for order of arrival, that it did.

    Args:
        state: its values.
        before: the state in whose place it comes, from which nothing was read.

    Attributes:
        furthest: the largest value that `yielded` ever had.
        has_gaps: whether `beyond` ever was anything but an empty text.
    """

    def __init__(self, state: State, before: State | None = None) -> None:
        super().__init__(state)
        live = before if isinstance(before, LiveState) else None
        self.furthest: int = live.furthest if live is not None else 0
        self.has_gaps: bool = live is not None and live.has_gaps

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a value, and remember how far the state ever was: `datasets` loads states value by value."""
        if name == "yielded":
            self.furthest = max(self.furthest, value)
        elif name == "beyond":
            self.has_gaps = self.has_gaps or bool(value)
        super().__setitem__(name, value)

    def __reduce__(self) -> tuple[type[State], tuple[State]]:
        return dict, (dict(self),)


def require_no_return(state: State, by_arrival: bool) -> None:
    """Refuse to go back behind the state that was loaded first, if rows come or came in order of arrival.

    Other rows would come now, and be left out in the place of those that were given.

    Args:
        state: where to go on.
        by_arrival: whether rows come in order of arrival now.

    Raises:
        StateConflict: the rows that were given cannot be told.
    """
    if not isinstance(state, LiveState) or state.furthest <= state["yielded"]:
        return
    if by_arrival or state.has_gaps:
        raise StateConflict(
            "state of a stream: in order of arrival it cannot be gone on with through what datasets makes batches in: "
            ".batch(), .map(batched=True), .filter(batched=True), and before datasets 5 more. Make batches in the "
            "DataLoader, or use order='index'. Or start without the state."
        )


def note(state: State, done: RowMark) -> None:
    """Note in `state` that this row is done, and all before it."""
    state.update(done._asdict(), shard_idx=None, shard_example_idx=None)


def position(state: State, sequence: ShardSequence, shards: Sequence[Shard]) -> Position:
    """Find where a stream over `shards` goes on from `state`.

    Raises:
        StateConflict: it cannot; the message says why.
    """
    sequence.require(state)
    if FORGETS_RESUMED and (state["part"], state["shard_idx"]) != (None, None):
        logger.warning(
            "datasets %s cannot say where a resumed stream is: a state taken from now on leads to the beginning. "
            "Use datasets 5.1 or newer.",
            VERSION,
        )
    if state["shard_idx"] is not None:
        return _earlier(state, sequence, shards)
    if state["part"] is None:
        return Position()
    done = RowMark(**{name: state[name] for name in RowMark._fields})
    for place, shard in enumerate(shards):
        first, stop = shard.bounds(done.rows)
        if shard.part == done.part and first <= done.row < stop:
            return Position(place, done.row + 1 - first, done)
    raise StateConflict(f"state of a stream: there is no row {done.row} in part {done.part} of {done.rows} rows.")


def _earlier(state: State, sequence: ShardSequence, shards: Sequence[Shard]) -> Position:
    """Find where to go on from a state of an earlier version, which does not say what it was made with.

    Raises:
        StateConflict: there are fewer shards now.
    """
    place, rows = state["shard_idx"], state["shard_example_idx"]
    if place >= len(shards):
        raise StateConflict(
            f"state of a stream: it is of an earlier version, and in shard {place}; there are {len(shards)} here. Use "
            "the shards_per_part that it was made with, or start without the state."
        )
    if place or rows:
        logger.warning(
            "The stream's state is of an earlier version and does not say what it was made with: it is taken to be "
            "parts=%s, shards_per_part=%d.",
            sequence.parts,
            sequence.shards_per_part,
        )
    return Position(place, rows)
