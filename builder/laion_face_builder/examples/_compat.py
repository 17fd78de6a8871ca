"""Touch what is private in `datasets`, and tell its versions apart; no other module does either.

A new version of datasets that changes any of this is met here. What the rest of the package takes over in a builder or
an iterable has names of our own, which `HookedBuilder` and `ExamplesIterable` call where datasets calls its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pyarrow as pa
from datasets.iterable_dataset import SkipExamplesIterable, _BaseExamplesIterable
from datasets.utils._filelock import FileLock
from packaging.version import Version

from laion_face_builder.orphans import forks_end_with_this

VERSION = Version(datasets.__version__)
#: Once a stream is resumed, datasets 5.0 keeps a state that nothing is written into any more.
FORGETS_RESUMED = VERSION.release[:2] == (5, 0)
#: Whether datasets would pass Arrow tables on under .skip() and the like: some versions then skip other rows.
_PASSES_TABLES_ON = hasattr(SkipExamplesIterable, "_iter_arrow")

State = dict[str, Any]


class ExamplesIterable(_BaseExamplesIterable):  # type: ignore[misc]  # datasets has no types that mypy could follow
    """What `datasets` drives when it streams; a class below yields keys and examples, and says how a state begins."""

    # datasets asks for it when iteration ends; there are no threads of Arrow's to wait for.
    _sleep_on_threads_shutdown = False

    _state_dict: State | None

    @property
    def live_state(self) -> State | None:
        """The state that iterating writes into; None as long as nobody wants one."""
        return self._state_dict

    def _begun(self, before: State | None) -> State:
        """Make the state of a stream that has not begun.

        Args:
            before: the state in whose place it comes.
        """
        raise NotImplementedError

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield keys and tables of one row."""
        raise NotImplementedError

    @property
    def iter_arrow(self) -> Callable[[], Iterator[tuple[int, pa.Table]]] | None:
        """A function that yields tables of one row, for older versions of datasets, which make batches of every stream.

        Without it they would infer a batch's types from its rows, and fail where one has a null and the next has none.
        Later versions make batches only of streams that offer tables, and then replay more of them after a resume.
        """
        return None if _PASSES_TABLES_ON else self._iter_arrow

    def _iter_arrow(self) -> Iterator[tuple[int, pa.Table]]:
        return self._tables()

    def _init_state_dict(self) -> State:
        self._state_dict = self._begun(self._state_dict)
        return self._state_dict


class _TypedRows(_BaseExamplesIterable):  # type: ignore[misc]  # likewise
    """The examples of another iterable, and the same as tables that have `features`, whatever stands in a row.

    datasets itself infers the types of each row, and so cannot put a row with a null beside one without.
    """

    def __init__(self, ex_iterable: Any, features: datasets.Features) -> None:
        super().__init__()
        self.ex_iterable = ex_iterable
        self._features = features

    @property
    def iter_arrow(self) -> Callable[[], Iterator[tuple[Any, pa.Table]]]:
        return self._iter_arrow

    @property
    def is_typed(self) -> bool:
        return bool(self.ex_iterable.is_typed)

    @property
    def features(self) -> datasets.Features:
        return self._features

    @property
    def num_shards(self) -> int:
        return int(self.ex_iterable.num_shards)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from self.ex_iterable

    def _iter_arrow(self) -> Iterator[tuple[Any, pa.Table]]:
        schema = self._features.arrow_schema
        for key, example in self.ex_iterable:
            yield key, pa.Table.from_pylist([self._features.encode_example(example)], schema=schema)

    def shuffle_data_sources(self, generator: Any) -> _TypedRows:
        return _TypedRows(self.ex_iterable.shuffle_data_sources(generator), self._features)

    def shard_data_sources(self, *args: Any, **kwargs: Any) -> _TypedRows:
        return _TypedRows(self.ex_iterable.shard_data_sources(*args, **kwargs), self._features)

    def reshard_data_sources(self) -> _TypedRows:
        return _TypedRows(self.ex_iterable.reshard_data_sources(), self._features)

    def _init_state_dict(self) -> State:
        state: State = self.ex_iterable._init_state_dict()
        self._state_dict = state
        return state

    def state_dict(self) -> Any:
        return self.ex_iterable.state_dict()

    def load_state_dict(self, state_dict: State) -> Any:
        return self.ex_iterable.load_state_dict(state_dict)


class TypedStream(datasets.IterableDataset):  # type: ignore[misc]  # likewise
    """A stream that keeps to its features when it is read as tables: to save it, or as Arrow, pandas or polars.

    So are the streams that are made of it by `.filter` and the like, as long as their features are known.
    """

    def with_format(self, type: str | None = None) -> Any:
        """Give the same rows in another format."""
        made = super().with_format(type)
        has_tables = made._formatting and made._formatting.is_table
        if has_tables and made.features is not None and not made._ex_iterable.iter_arrow:
            made._ex_iterable = _TypedRows(made._ex_iterable, made.features)
        return typed(made)


def typed(rows: datasets.IterableDataset) -> TypedStream:
    """Make a stream one that keeps to its features when it is read as tables."""
    rows.__class__ = TypedStream
    return rows  # type: ignore[no-any-return]  # datasets has no types


def _gives_typed(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: TypedStream, *args: Any, **kwargs: Any) -> TypedStream:
        return typed(method(self, *args, **kwargs))

    return call


_STATIC = {name for name, method in vars(datasets.IterableDataset).items() if isinstance(method, staticmethod)}
for _name, _method in inspect.getmembers(datasets.IterableDataset, inspect.isfunction):
    _gives_stream = _method.__annotations__.get("return") in ("IterableDataset", datasets.IterableDataset)
    if _gives_stream and not _name.startswith("_") and _name not in _STATIC and _name != "with_format":
        setattr(TypedStream, _name, _gives_typed(_method))


class HookedBuilder(datasets.GeneratorBasedBuilder):  # type: ignore[misc]  # likewise
    """A builder that may resume, filter and count where datasets would do so less exactly than failures need."""

    def _before_config(self, name: str | None, features: Any, given: dict[str, Any]) -> None:
        """Check the arguments that the config is made of."""

    def _stream_of(self, **kwargs: Any) -> ExamplesIterable:
        """Give the examples of a split, made with what its SplitGenerator says."""
        raise NotImplementedError

    def _stream_made(self, rows: datasets.IterableDataset) -> datasets.IterableDataset:
        """Give the stream of a split to its reader."""
        return rows

    def _before_writing(self, folder: str) -> None:
        """Prepare the folder that the Arrow files are about to be written into."""

    def _after_writing(self, folder: str) -> None:
        """Judge what was written, before it becomes the cache."""

    def _empty(self, split: Any) -> datasets.Dataset:
        """Give the dataset of a split without examples, which datasets cannot read."""
        raise NotImplementedError

    def _dataset_made(self, dataset: datasets.Dataset, folder: str) -> datasets.Dataset:
        """Give the dataset of a split, read from `folder`, to its reader."""
        return dataset

    def _use_cache(self, config_id: str) -> str:
        """Name the Arrow cache by `config_id`, forget what an earlier call found there, and return its folder."""
        self.config_id = config_id
        self._cache_dir = self._output_dir = self._build_cache_dir()
        self.info.splits = self.info.size_in_bytes = None  # datasets would hold this call to what an earlier one made
        return str(self._cache_dir)

    def _create_builder_config(self, config_name: str | None = None, custom_features: Any = None, **given: Any) -> Any:
        self._before_config(config_name, custom_features, given)
        return super()._create_builder_config(config_name, custom_features, **given)

    def _get_examples_iterable_for_split(self, split_generator: Any) -> ExamplesIterable:
        return self._stream_of(**split_generator.gen_kwargs)

    def _as_streaming_dataset_single(self, splits_generator: Any, *args: Any) -> datasets.IterableDataset:
        return typed(self._stream_made(super()._as_streaming_dataset_single(splits_generator, *args)))

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        self._before_writing(self._output_dir)
        with forks_end_with_this():
            super()._download_and_prepare(*args, **kwargs)
        self._after_writing(self._output_dir)

    def _as_dataset(self, split: Any = datasets.Split.TRAIN, in_memory: bool = False) -> datasets.Dataset:
        is_empty = not self.info.splits.total_num_examples
        made = self._empty(split) if is_empty else super()._as_dataset(split, in_memory)
        return self._dataset_made(made, self._output_dir)


def lock_of_cache(folder: str) -> FileLock:
    """Give the lock that datasets holds while it writes the Arrow cache in `folder`."""
    return FileLock(f"{folder}_builder.lock")


def note(dataset: Any, key: str, value: str) -> None:
    """Note a text in a dataset or a stream, in a field that `.map` and the like carry on."""
    dataset.info.download_checksums = {key: value}


def noted(dataset: Any, key: str) -> str | None:
    """Return the text that was noted; None if none was, or this is no dataset."""
    notes = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    return str(notes[key]) if key in notes else None
