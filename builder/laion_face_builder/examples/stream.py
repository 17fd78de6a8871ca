"""The iterables that `datasets` drives when it streams.

datasets' own iterable over a generator can only start a shard from its beginning and throw rows away. These start at
any row, so that a resumed stream reads nothing that it skips, and walk on from shard to shard without a pause. Their
state has the form of datasets' own: the place of the shard, and how many of its index rows are done, whatever became
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import pyarrow as pa
from datasets import Features
from datasets.iterable_dataset import _BaseExamplesIterable

from laion_face_builder.examples.example import Example
from laion_face_builder.examples.report import Tally
from laion_face_builder.examples.rows import Plan, Position, Shard, Step, fetched, walk
from laion_face_builder.schema import example_features


class ExampleStream(_BaseExamplesIterable):  # type: ignore[misc]  # datasets has no types that mypy could follow
    """Keys and examples of the rows of `shards` that are wanted, in order; a picture as {"bytes", "path"}.

    datasets (newer than 3.6) asks what features the examples have, and encodes and decodes them if the dataset has
    others. These are those of `.decode(False)`, which is then free; a dataset that decodes gets its pictures decoded.
    """

    # datasets asks for it when iteration ends; there are no threads of Arrow's to wait for.
    _sleep_on_threads_shutdown = False

    def __init__(self, plan: Plan, shards: Sequence[Shard]) -> None:
        super().__init__()
        self._plan = plan
        self._shards = list(shards)

    @property
    def num_shards(self) -> int:
        """How many shards can be shared out."""
        return len(self._shards)

    @property
    def features(self) -> Features:
        """Those of what is yielded: pictures are not decoded."""
        return _features_of(self._plan, decode=False)

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        with Tally(self._plan.report_folder) as tally:
            for step, picture in fetched(self._plan, walk(self._plan, self._shards, self._start(), tally)):
                self._note(step)
                if (example := step.row.example(picture)) is not None:
                    yield step.key, example

    def shuffle_data_sources(self, generator: Any) -> ExampleStream:
        """The same rows with the shards in another order."""
        order = deepcopy(generator).permutation(len(self._shards))
        return type(self)(self._plan, [self._shards[place] for place in order])

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> ExampleStream:
        """The share of one worker or rank of several."""
        places = self.split_shard_indices_by_worker(num_shards, index, contiguous=contiguous)
        return type(self)(self._plan, [self._shards[place] for place in places])

    def reshard_data_sources(self) -> ExampleStream:
        """The same rows in twice as many shards."""
        return type(self)(self._plan, [half for shard in self._shards for half in shard.halves()])

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict: dict[str, Any] | None = {"shard_idx": 0, "shard_example_idx": 0, "type": type(self).__name__}
        return self._state_dict

    def _start(self) -> Position:
        state = self._state_dict
        return Position(state["shard_idx"], state["shard_example_idx"]) if state else Position()

    def _note(self, step: Step) -> None:
        if self._state_dict:
            self._state_dict["shard_idx"], self._state_dict["shard_example_idx"] = step.after


class DecodedStream(ExampleStream):
    """Keys and examples as datasets 3.6 hands them to the user: picture decoded.

    datasets 3.6 passes whatever has not the dataset's features through Arrow batches, and after a resume throws away as
    many *examples* as it had seen since its last note: if other pictures fail now, those are the wrong ones. What has
    the features already, it leaves alone. As Arrow tables (`with_format`, `decode(False)`) pictures keep their bytes.
    """

    is_typed = True

    def __init__(self, plan: Plan, shards: Sequence[Shard]) -> None:
        super().__init__(plan, shards)
        self._features = _features_of(plan, decode=True)

    @property
    def features(self) -> Features:
        """Those of the dataset."""
        return self._features

    @property
    def iter_arrow(self) -> Callable[[], Iterator[tuple[int, pa.Table]]]:
        """What gives tables of one row, pictures not decoded."""
        return self._tables

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        for key, example in super().__iter__():
            yield key, self._features.decode_example(example)

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        for key, example in super().__iter__():
            yield key, pa.Table.from_pylist([example], schema=self._features.arrow_schema)


def _features_of(plan: Plan, *, decode: bool) -> Features:
    return example_features(decode=decode, blur_faces=plan.options.blur_faces, mode=plan.options.mode)


def examples(plan: Plan, shards: Sequence[Shard]) -> Iterator[tuple[int, Example]]:
    """Keys and examples of `shards`, without the rows that are not wanted: what goes into Arrow files."""
    with Tally(plan.report_folder) as tally:
        for step, picture in fetched(plan, walk(plan, shards, Position(), tally)):
            if (example := step.row.example(picture)) is not None:
                yield step.key, example
