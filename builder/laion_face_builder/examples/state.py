"""The state of a stream: what it holds, and which streams can resume from it.

A state names the last index row that is done, whatever became of it, and the course that led there. A course in the
index's own order, read as a whole, can be resumed under any shards_per_part: what is left are the rows after that one.
In order of arrival rows beyond it are done, too: the state names them, and a stream of either order leaves them out.
Any other course can only be resumed as it was: other parts, another share, another order or number of shards are
refused by name. Filters and the treatment of failed pictures may change: they decide about rows that are still to come.

A state is flat and of plain values, for `datasets` nests it in its own, copies it, and loads it key by key over that of
the new stream.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets

from laion_face_builder.errors import StateConflict
from laion_face_builder.examples.rows import Plan, Position, RowMark, Shard
from laion_face_builder.files import digest

logger = logging.getLogger("laion_face")

#: Version of the state's form. The first had no number: it counted shards, and rows in the shard. The second had no
#: `beyond`.
FORMAT = 3
_READ = (2, FORMAT)
IN_ORDER = "that of the index"
#: Once a stream is resumed, datasets 5.0 keeps a state that nothing is written into any more.
FORGETS_RESUMED = datasets.__version__.startswith("5.0.")

State = dict[str, Any]


@dataclass(frozen=True)
class Course:
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
    def of(cls, plan: Plan, shards: Sequence[Shard], share: str) -> Course:
        """Give the course of a stream over `shards`."""
        count = shards[0].of if shards else plan.options.shards_per_part
        whole = [Shard(part, number, count) for part in plan.options.parts for number in range(count)]
        order = IN_ORDER if list(shards) == whole else digest([list(vars(shard).values()) for shard in shards])[:12]
        return cls(",".join(map(str, plan.options.parts)), share, count, order)

    def require(self, made: State) -> None:
        """Refuse a state whose course this one cannot resume.

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


def new_state(kind: str, course: Course) -> State:
    """Make the state of a stream of class `kind` that has not begun.

    `part`, `row`, `sample_id`, `rows`: the last row up to which all are done, see `RowMark`. `beyond`: rows after it
    that are done, too, see `done_rows`. `yielded`: examples so far.
    `is_replayed`: see `ExampleStream.load_state_dict`. `shard_idx` and `shard_example_idx` are set in states of earlier
    versions only.
    """
    return {
        "type": kind,
        "format": FORMAT,
        **asdict(course),
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


def position(state: State, course: Course, shards: Sequence[Shard]) -> Position:
    """Find where a stream over `shards` goes on from `state`.

    Raises:
        StateConflict: it cannot; the message says why.
    """
    course.require(state)
    if FORGETS_RESUMED and (state["part"], state["shard_idx"]) != (None, None):
        logger.warning(
            "datasets %s cannot say where a resumed stream is: a state taken from now on leads to the beginning. "
            "Use datasets 5.1 or newer.",
            datasets.__version__,
        )
    if state["shard_idx"] is not None:
        return _earlier(state, course, shards)
    if state["part"] is None:
        return Position()
    done = RowMark(**{name: state[name] for name in RowMark._fields})
    for place, shard in enumerate(shards):
        first, stop = shard.bounds(done.rows)
        if shard.part == done.part and first <= done.row < stop:
            return Position(place, done.row + 1 - first, done)
    raise StateConflict(f"state of a stream: there is no row {done.row} in part {done.part} of {done.rows} rows.")


def _earlier(state: State, course: Course, shards: Sequence[Shard]) -> Position:
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
            course.parts,
            course.shards_per_part,
        )
    return Position(place, rows)
