"""Put rows that come in any order into the order of the index, in bounded memory.

The keys of the index are held sorted, 12 bytes a row (`KeyPlaces`). Rows of which it has the key are gathered until
some hundred megabytes are together, sorted by their place in the index, and written as a run (`SortedRuns`). At last
all runs are read side by side, a stretch of the index at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

Keys = npt.NDArray[np.int64]
#: Where rows are, counted over all parts that are joined.
Rows = npt.NDArray[np.uint32]
#: The column of a run that says where its rows belong.
AT = "_at"
#: How much is sorted at once, as Arrow; the double of it is in memory for a moment.
RUN_BYTES = 192 << 20
#: How much of each run is decoded at once, while all are read side by side.
_PIECE_BYTES = 256 << 10
_BUCKETS = 64
_ODD = np.uint64(0x9E3779B97F4A7C15)


def keys_of_texts(texts: pa.Array) -> Keys:
    """Return 64-bit hashes of texts, none of which is null; different texts may share one."""
    hashes = (xxhash.xxh3_64_intdigest(text) for text in texts.cast(pa.binary()).to_pylist())
    return np.fromiter(hashes, np.uint64, len(texts)).view(np.int64)


class KeyPlaces:
    """Where the index has the rows of a key; one key may be that of several rows."""

    def __init__(self) -> None:
        self._gathered: list[list[tuple[Keys, Rows]]] = [[] for _ in range(_BUCKETS)]
        self._sorted: list[tuple[Keys, Rows]] = []

    def add(self, keys: Keys, rows: Rows) -> None:
        """Add the keys of some rows, before anything is asked."""
        for bucket, where in _bucketed(keys):
            self._gathered[bucket].append((keys[where], rows[where]))

    def sort(self) -> None:
        """Sort what was added."""
        for bucket, pieces in enumerate(self._gathered):
            keys = np.concatenate([np.empty(0, np.int64), *(piece for piece, _ in pieces)])
            rows = np.concatenate([np.empty(0, np.uint32), *(piece for _, piece in pieces)])
            order = np.argsort(keys, kind="stable")
            self._sorted.append((keys[order], rows[order]))
            self._gathered[bucket] = []

    def find(self, keys: Keys) -> tuple[npt.NDArray[np.int64], Rows]:
        """Find the rows of each of `keys`.

        Returns:
            For every row found, which of `keys` it has, int64[m], and where it is, uint32[m].
        """
        which, rows = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
        for bucket, asked in _bucketed(keys):
            known, places = self._sorted[bucket]
            first = np.searchsorted(known, keys[asked], side="left")
            counts = np.searchsorted(known, keys[asked], side="right") - first
            which.append(np.repeat(asked, counts))
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows.append(places[np.repeat(first, counts) + within])
        return np.concatenate(which), np.concatenate(rows)


def _bucketed(keys: Keys) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield buckets, and which of the keys are in each."""
    buckets = (keys.view(np.uint64) * _ODD) >> np.uint64(64 - _BUCKETS.bit_length() + 1)
    order = np.argsort(buckets, kind="stable")
    there, starts = np.unique(buckets[order], return_index=True)
    yield from zip(there.tolist(), np.split(order, starts[1:]), strict=True) if len(keys) else ()


class SortedRuns:
    """Rows by their place in the index, in files of `folder`.

    Args:
        schema: of the rows, besides AT.
    """

    def __init__(self, folder: Path, schema: pa.Schema, run_bytes: int = RUN_BYTES) -> None:
        self._folder, self._most = folder, run_bytes
        self._schema = pa.schema([(AT, pa.uint32()), *schema])
        self._held: list[pa.RecordBatch] = []
        self._size, self._runs = 0, list[Path]()

    def add(self, at: Rows, columns: list[pa.Array]) -> None:
        """Add rows with their places."""
        if len(at):
            self._held.append(pa.record_batch([pa.array(at), *columns], schema=self._schema))
            self._size += self._held[-1].nbytes
        if self._size >= self._most:
            self._write()

    def merged(self, bounds: Iterable[tuple[int, int]]) -> Iterator[pa.Table]:
        """Yield, of each stretch of places, the rows that are there, sorted; the stretches ascend."""
        self._write()
        with ExitStack() as stack:
            runs = [_Run(stack.enter_context(pa.OSFile(str(path)))) for path in self._runs]
            for _, stop in bounds:
                batches = [batch for run in runs for batch in run.until(stop)]
                found = pa.Table.from_batches(batches, self._schema)
                yield found.combine_chunks().sort_by(AT) if len(batches) > 1 else found

    def _write(self) -> None:
        if not self._held:
            return
        table = pa.Table.from_batches(self._held, self._schema).combine_chunks()
        self._held, size, self._size = [], self._size, 0
        table = table.take(np.argsort(table[AT].to_numpy(), kind="stable"))
        path = self._folder / f"run-{len(self._runs):05d}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, self._schema, options=options) as writer:
            writer.write_table(table, max_chunksize=max(1, _PIECE_BYTES * table.num_rows // max(size, 1)))
        self._runs.append(path)


class _Run:
    """One run, as far as it was not yet read."""

    def __init__(self, file: Any) -> None:
        self._batches = iter(pa.ipc.open_stream(file))
        self._held: pa.RecordBatch | None = next(self._batches, None)

    def until(self, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows whose place is before `stop`."""
        while self._held is not None:
            count = int(np.searchsorted(self._held[AT].to_numpy(), stop))
            if count:
                yield self._held.slice(0, count)
            if count < len(self._held):
                self._held = self._held.slice(count)
                return
            self._held = next(self._batches, None)
