"""The iterable that `datasets` drives when it streams.

datasets' own iterable over a generator can only start a shard from its beginning and throw rows away. This one starts
at any row, so that a resumed stream reads nothing that it skips, and walks on from shard to shard without a pause. What
its state says is in `state`.

Several ranks end an epoch together (`in_step`). How many examples a rank gets is not known beforehand: pictures fail,
filters drop rows. But DDP waits in every step for all ranks, and so for ever for one that has no more. So before each
step the ranks ask each other.

torch takes seconds to import, and reading examples does not need it: it is imported when batches are asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Features

from laion_face_builder.examples import state
from laion_face_builder.examples._compat import ExamplesIterable, State
from laion_face_builder.examples.example import Example
from laion_face_builder.examples.report import Tally
from laion_face_builder.examples.state import Beyond, DoneRows, ShardSequence
from laion_face_builder.examples.walk import Plan, Position, Shard, fetched, walk
from laion_face_builder.log import logger
from laion_face_builder.options import ARRIVAL_ORDER
from laion_face_builder.orphans import end_worker_with_parent
from laion_face_builder.schema import example_features

Batch = TypeVar("Batch")


def in_step(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give batches as long as every rank has one: all ranks make the same number of steps.

        for batch in laion_face.in_step(loader):
            ...

    In each step the ranks add up one number, on the CPU (gloo), so that no GPU waits for it. What some ranks still have
    when the first one has no more is left out of this epoch, and rank 0 logs that. Nothing is read ahead: a state that
    is taken between two steps is that of the batches that were given. A state that is taken after the end may be beyond
    a batch that was left out; take it before, or begin the next epoch without one.

    Args:
        batches: a DataLoader, or whatever gives this rank's batches. All ranks have to call this at the same places.

    Yields:
        What `batches` gives. All of it if torch.distributed is not initialised, or there is one rank.
    """
    group = _group_of_processors()
    if group is None:
        yield from batches
        return
    iterator, steps = iter(batches), 0
    while True:
        batch = next(iterator, _NONE)
        having = _count(batch is not _NONE, group)
        if having < group.size():
            break
        yield batch  # type: ignore[misc]  # every rank has one, so this is not _NONE
        steps += 1
    _say_what_is_left(steps, having, group)


_NONE = object()


def _group_of_processors() -> Any:
    """Give all ranks as a gloo group of our own; None unless there are several ranks."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return _gloo(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _gloo(_world: object) -> Any:
    """Make the gloo group, once for each time that torch.distributed is initialised."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


def _count(has_one: bool, group: Any) -> int:
    """Count the ranks that have a batch."""
    import torch
    import torch.distributed as dist

    ones = torch.tensor([int(has_one)])
    dist.all_reduce(ones, group=group)
    return int(ones)


def _say_what_is_left(steps: int, having: int, group: Any) -> None:
    if having and group.rank() == 0:
        logger.info(
            "%d steps: then %d of %d ranks had no more batches, and what the others still had is left out",
            steps,
            group.size() - having,
            group.size(),
        )


class ExampleStream(ExamplesIterable):
    """Keys and examples of the rows of `shards` that pass the filters, in the order that the options name.

    A picture is {"bytes", "path"}.

    datasets asks what features the examples have, and encodes and decodes them if the dataset has others. These are
    those of `.decode(False)`, which is then free; a dataset that decodes gets its pictures decoded. `is_typed` stays
    False: datasets 3.6 cannot filter typed iterables.
    """

    def __init__(self, plan: Plan, shards: Sequence[Shard], share: str = "") -> None:
        super().__init__()
        self._plan = plan
        self._shards = list(shards)
        self._share = share
        self._to_replay = 0
        self._has_begun = True

    @property
    def num_shards(self) -> int:
        """How many shards can be divided among workers and ranks."""
        return len(self._shards)

    @property
    def features(self) -> Features:
        """Features of the examples as they are yielded: pictures are not decoded."""
        return _features_of(self._plan, decode=False)

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        schema = _features_of(self._plan, decode=True).arrow_schema
        for key, example in self:
            yield key, pa.Table.from_pylist([example], schema=schema)

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        end_worker_with_parent()
        yield from self._replayed()
        with Tally(self._plan.report_folder) as tally:
            rows = walk(self._plan, self._shards, self._start(), tally)
            done = self._done_rows()
            for step, picture in fetched(self._plan, done.still_to_do(rows), self._plan.options.ahead.order):
                done.finish(step)
                if (example := step.row.example(picture)) is not None:
                    self._count()
                    yield step.key, example

    def shuffle_data_sources(self, generator: Any) -> ExampleStream:
        """Give the same rows with the shards in another order."""
        order = deepcopy(generator).permutation(len(self._shards))
        return type(self)(self._plan, [self._shards[place] for place in order], self._share)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> ExampleStream:
        """Give the share of one worker or rank of several."""
        places = self.split_shard_indices_by_worker(num_shards, index, contiguous=contiguous)
        share = f"{self._share}, {index} of {num_shards}".lstrip(", ") if num_shards > 1 else self._share
        return type(self)(self._plan, [self._shards[place] for place in places], share)

    def reshard_data_sources(self) -> ExampleStream:
        """Give the same rows in twice as many shards."""
        return type(self)(self._plan, [half for shard in self._shards for half in shard.halves()], self._share)

    def state_dict(self) -> State:
        """Copy the state, for an iterable that wraps this stream and may go back to it; see `load_state_dict`."""
        return {**super().state_dict(), "is_replayed": True}

    def load_state_dict(self, state_dict: State) -> State:
        """Resume from `state_dict`.

        Where datasets makes Arrow batches (of every stream before datasets 5), it resumes one or two examples too early
        and throws as many away. If other pictures fail now, those would be the wrong ones. So where it has first loaded
        the right state, and then goes back to one that it was handed by `state_dict`, the stream stays where it is, and
        gives as many empty examples first.
        """
        here = self.live_state
        has_begun = here is not None and (here["part"] is not None or here["beyond"] != "")
        is_ahead = here is not None and has_begun and here["yielded"] >= state_dict.get("yielded", 0)
        if here is None or not is_ahead or not state_dict.get("is_replayed"):
            return super().load_state_dict(state_dict)  # type: ignore[no-any-return]
        self._to_replay = here["yielded"] - state_dict["yielded"]
        here.update(yielded=state_dict["yielded"])
        return here

    def _replayed(self) -> Iterator[tuple[int, Example]]:
        nothing = dict.fromkeys(self._plan.options.columns)
        while self._to_replay:
            self._to_replay -= 1
            self._count()
            yield -1, nothing

    def _begun(self, before: State | None) -> State:
        self._to_replay = 0
        if self._has_begun:
            before = None
        self._has_begun = False
        return state.LiveState(state.new_state(type(self).__name__, self._sequence()), before)

    def _sequence(self) -> ShardSequence:
        return ShardSequence.of(self._plan, self._shards, self._share)

    def _start(self) -> Position:
        if (here := self.live_state) is None:
            return Position()
        self._has_begun = True
        state.require_no_return(here, self._by_arrival)
        start = state.position(here, self._sequence(), self._shards)
        here.update(is_replayed=False, format=state.FORMAT)
        return start

    @property
    def _by_arrival(self) -> bool:
        options = self._plan.options
        return options.ahead.order == ARRIVAL_ORDER and options.images in ("auto", "fetch")

    def _done_rows(self) -> DoneRows:
        here = self.live_state
        if here is None:
            return DoneRows("", lambda _: None)
        done = DoneRows(str(here["beyond"]), partial(state.note, here))
        here["beyond"] = Beyond(done)
        return done

    def _count(self) -> None:
        if (here := self.live_state) is not None:
            here["yielded"] += 1


def _features_of(plan: Plan, *, decode: bool) -> Features:
    options = plan.options
    return example_features(decode=decode, blur_faces=options.blur_faces, mode=options.mode, more=options.more)


def examples(plan: Plan, shards: Sequence[Shard]) -> Iterator[tuple[int, Example]]:
    """Yield keys and examples of the rows of `shards` that pass the filters, for Arrow files.

    They come in the index's order whatever the options say, so that the cache is the same.
    """
    end_worker_with_parent()
    with Tally(plan.report_folder, is_needed=True) as tally:
        for step, picture in fetched(plan, walk(plan, shards, Position(), tally)):
            if (example := step.row.example(picture)) is not None:
                yield step.key, example
