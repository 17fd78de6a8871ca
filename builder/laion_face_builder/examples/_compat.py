"""Touch what is private in `datasets`, and tell its versions apart; no other module does either.

A new version of datasets that changes any of this is met here. What the rest of the package takes over in a builder or
an iterable has names of our own, which `HookedBuilder` and `ExamplesIterable` call where datasets calls its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pyarrow as pa
from datasets.iterable_dataset import SkipExamplesIterable, _BaseExamplesIterable
from datasets.utils._filelock import FileLock
from packaging.version import Version

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
        return self._stream_made(super()._as_streaming_dataset_single(splits_generator, *args))

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        self._before_writing(self._output_dir)
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
