"""Lay a table that is joined beside the index, once: row r of a side table speaks of row r of the index.

DATA_DIR/joined/HEX/part-000NN.parquet   `_matched`, and their columns under the names that examples give them

Where theirs has no row all is null, and where ours was taken down: an index elsewhere may have it. So reading is by
row range, as of the index itself, and costs no search. A side table is made again when the content of its source, the
index or the names have changed; parts that are there stay.
"""

from __future__ import annotations

import bisect
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.errors import BadFile, NotPrepared, OptionError
from laion_face_builder.files import (
    Fingerprint,
    digest,
    disk_errors,
    locked,
    make_fingerprint,
    read_fingerprint,
    remove_partials,
    stamped,
    written_whole,
)
from laion_face_builder.index.joined_columns import KEYS, JoinSource, as_plain, refuse_clashes
from laion_face_builder.index.joined_files import JoinedFile, find_joined
from laion_face_builder.index.joined_rows import AT, RUN_BYTES, KeyPlaces, Keys, SortedRuns, keys_of_texts
from laion_face_builder.index.metadata import as_text, parse_ids
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import as_made, settled
from laion_face_builder.index.removed import Removed
from laion_face_builder.index.side_table import MATCHED_FIELD, SideTable
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.log import logger
from laion_face_builder.shown import ranges, short
from laion_face_builder.sources.copied_file import RemoteFile
from laion_face_builder.sources.hub import Token

#: Gives the index of a part.
Opened = Callable[[int], IndexPart]


@dataclass(frozen=True)
class Joining:
    """The joining of one source to the parts of a dataset.

    Args:
        data: where side tables are kept.
        opened: gives the index of a part, to be closed by the caller.
        taken: names that columns have already, and whose they are.
        run_bytes: how much is sorted at once.
    """

    data: DataDir
    source: JoinSource
    parts: tuple[int, ...]
    opened: Opened
    taken: Mapping[str, str] = field(default_factory=dict)
    token: Token = field(default=None, repr=False)
    run_bytes: int = RUN_BYTES

    def made(self) -> SideTable:
        """Make what is missing, and return the side table.

        Raises:
            SourceError: the source cannot be had; BadFile: it cannot be read, or has two rows for one sample.
            StateConflict: a removal from DATA_DIR was begun and is not finished.
        """
        folder = self.data.joined(self.source.key)
        with locked(folder, waiting=f"waiting for another process to join {self.source}"):
            removed = settled(
                self.data
            ).removed  # A removal that begins later waits for the lock, and frees the folder.
            remove_partials(folder)
            missing = [part for part in self.parts if self._known(part) != self._wanted(part)]
            if missing:
                _Join(self, self._local, missing, removed).run(folder)
                for file in self._files:
                    file.discard(self.data.sources)
        return self._table(folder)

    def there(self) -> SideTable:
        """Return the side table, which another process has made.

        Raises:
            NotPrepared: a part of it is missing, or was made from something else.
        """
        folder = self.data.joined(self.source.key)
        missing = [part for part in self.parts if self._known(part) != self._wanted(part)]
        if missing:
            raise NotPrepared(
                f"{folder}: {self.source} is not joined there with parts {ranges(missing, ', ')}. Load the "
                "dataset once with the same options, in one process and without a dry run."
            )
        return self._table(folder)

    def _table(self, folder: Path) -> SideTable:
        schema = pa.schema(list(pq.read_schema(folder / f"part-{self.parts[0]:05d}.parquet").remove_metadata())[1:])
        before = len(self.source.named(""))
        refuse_clashes(self.source, [name[before:] for name in schema.names], self.taken)
        return SideTable(folder, schema)

    def _known(self, part: int) -> Fingerprint | None:
        return read_fingerprint(self.data.joined(self.source.key) / f"part-{part:05d}.parquet")

    def _wanted(self, part: int) -> Fingerprint:
        with self.opened(part) as index:
            made_for, as_it_was = digest(index.fingerprint), digest(as_made(index.fingerprint))
        # Only then: tables of earlier versions stay good.
        before = {"whole_index": as_it_was} if as_it_was != made_for else {}
        how = {"name": self.source.name, "files": self._contents, **before}
        return make_fingerprint("joined", part=part, index=made_for, **how)

    @cached_property
    def _files(self) -> tuple[RemoteFile, ...]:
        return find_joined(self.source, self.token)

    @cached_property
    def _contents(self) -> list[str]:
        """What names the content of each file: of one's own files the SHA-256, of others what their place states."""
        return [
            str(file.content(self.data.sources)) if file.is_local else digest(file.version, 64) for file in self._files
        ]

    @cached_property
    def _local(self) -> list[JoinedFile]:
        return [JoinedFile(file.fetch(self.data.sources), file.name) for file in self._files]


@dataclass
class _Counts:
    """What became of their rows, and of ours."""

    theirs: int = 0
    without_key: int = 0
    unknown: int = 0
    matched: int = 0


class _Join:
    """The making of some parts of a side table from all rows of its source.

    Raises:
        OptionError: the files of the source do not fit each other.
    """

    def __init__(self, joining: Joining, files: Sequence[JoinedFile], parts: Sequence[int], removed: Removed) -> None:
        self._joining, self._files, self._parts, self._removed = joining, files, parts, removed
        self._key = _one_key(joining.source, files)
        self._schema = _one_schema(joining.source, files)
        refuse_clashes(joining.source, self._schema.names, joining.taken)
        self._counts = _Counts()
        self._starts = [0]
        self._places = KeyPlaces()

    def run(self, folder: Path) -> None:
        """Make the files of all parts, each whole; what lies there of other content is replaced."""
        self._gather_places()
        carried = [pa.field("_key", pa.string())] if self._key == "url" else []
        with _scratch(folder) as scratch, disk_errors(folder):
            runs = SortedRuns(scratch, pa.schema([*carried, *self._schema]), self._joining.run_bytes)
            self._gather_rows(runs)
            merged = runs.merged(self._stretches())
            for number, part in enumerate(self._parts):
                with self._joining.opened(part) as index:
                    self._write(folder, number, part, index, merged)
        self._say()

    def _gather_places(self) -> None:
        for part in self._parts:
            with self._joining.opened(part) as index:
                for start, stop in index.row_groups:
                    column = index.read(start, stop, [self._key], is_lenient=True)[self._key].combine_chunks()
                    there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
                    keys = self._keys(column.take(pa.array(there)))
                    self._places.add(keys, (there + self._starts[-1] + start).astype(np.uint32))
                self._starts.append(self._starts[-1] + index.num_rows)
        self._places.sort()

    def _keys(self, column: pa.Array) -> Keys:
        """Give keys of values that are not null."""
        return keys_of_texts(column) if self._key == "url" else np.asarray(column.to_numpy(), np.int64)

    def _gather_rows(self, runs: SortedRuns) -> None:
        known = [file.rows for file in self._files]
        total = sum(rows for rows in known if rows is not None) if None not in known else None
        with progress.bar(f"join {self._joining.source}", total, "row") as bar:
            for file in self._files:
                for batch in file.batches():
                    self._take(file, batch, runs)
                    bar.update(len(batch))

    def _take(self, file: JoinedFile, batch: pa.RecordBatch, runs: SortedRuns) -> None:
        values, valid = self._keys_in(file, batch.column(0))
        asked = np.flatnonzero(valid)
        which, at = self._places.find(self._keys(values.take(pa.array(asked))))
        rows = pa.array(asked[which])
        carried = [values.take(rows)] if self._key == "url" else []
        self._counts.theirs += len(batch)
        self._counts.without_key += len(batch) - len(asked)
        self._counts.unknown += len(asked) - len(np.unique(which))
        runs.add(at, [*carried, *(self._column(file, batch, name).take(rows) for name in self._schema.names)])

    def _keys_in(self, file: JoinedFile, column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        if self._key == "url":
            texts, _ = as_text(column, file.name, file.key)
            return texts, np.asarray(texts.is_valid().to_numpy(zero_copy_only=False))
        ids = parse_ids(column, file.name)
        return pa.array(ids.values), ids.valid

    def _column(self, file: JoinedFile, batch: pa.RecordBatch, name: str) -> pa.Array:
        kind, place = self._schema.field(name).type, batch.schema.get_field_index(name)
        if place < 0:
            return pa.nulls(len(batch), kind)
        try:
            return as_plain(batch.column(place), kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadFile(
                file.name,
                found=f"column {name!r}: {short(error, 200)}",
                expected=f"{kind}, as in the first file",
                way_out="Write all files of the table with one type a column.",
            ) from error

    def _stretches(self) -> Iterator[tuple[int, int]]:
        for first, stop in zip(self._starts, self._starts[1:], strict=False):
            yield from ((first + a, first + b) for a, b in row_group_bounds(stop - first))

    def _write(self, folder: Path, number: int, part: int, index: IndexPart, merged: Iterator[pa.Table]) -> None:
        named = [field.with_name(self._joining.source.named(field.name)) for field in self._schema]
        schema = stamped(pa.schema([MATCHED_FIELD, *named]), self._joining._wanted(part))
        how = {"compression": "zstd", "write_page_index": True, "write_page_checksum": True}
        with (
            written_whole(folder / f"part-{part:05d}.parquet") as partial,
            pq.ParquetWriter(partial, schema, **how) as writer,
        ):
            for start, stop in row_group_bounds(index.num_rows):
                found = self._refused_doubles(self._right(index, start, next(merged), number))
                at = found[AT].to_numpy().astype(np.int64) - self._starts[number] - start
                if self._removed.has_rows and len(at):
                    kept = ~self._removed.mask(index.read(start, stop, ["sample_id", "url"], is_lenient=True))[at]
                    found, at = found.filter(pa.array(kept)), at[kept]
                where = np.full(stop - start, -1)
                where[at] = np.arange(len(at))
                rows = pa.array(where, mask=where < 0)
                columns = [found[name].combine_chunks().take(rows) for name in self._schema.names]
                self._counts.matched += len(at)
                writer.write_table(pa.table([pa.array(where >= 0), *columns], schema=schema), stop - start)

    def _right(self, index: IndexPart, start: int, found: pa.Table, number: int) -> pa.Table:
        """Leave out rows whose address is another than the index's, with the same hash."""
        if self._key != "url" or not found.num_rows:
            return found
        at = found[AT].to_numpy().astype(np.int64) - self._starts[number]
        urls = index.read(start, int(at[-1]) + 1, ["url"], is_lenient=True)["url"].combine_chunks()
        return found.filter(pc.equal(urls.take(pa.array(at - start)), found["_key"].combine_chunks()))

    def _refused_doubles(self, found: pa.Table) -> pa.Table:
        at = found[AT].to_numpy()
        doubled = np.flatnonzero(at[1:] == at[:-1])
        if not len(doubled):
            return found
        row = int(at[doubled[0]])
        number = bisect.bisect_right(self._starts, row) - 1
        with self._joining.opened(self._parts[number]) as index:
            place = row - self._starts[number]
            value = index.read(place, place + 1, [self._key], is_lenient=True)[self._key][0].as_py()
        raise BadFile(
            str(self._joining.source),
            found=f"several rows of {self._key} {value}",
            expected="at most one row a sample",
            way_out="Keep one of them, or put their values into a list.",
        )

    def _say(self) -> None:
        counts, ours = self._counts, self._starts[-1]
        parts = ranges(self._parts, ", ")
        say = logger.info if counts.matched else logger.warning
        say(
            "join %s: %d of %d samples of parts %s have a row in it (%.1f %%), found by %s; of its %d rows %d are of "
            "no such sample, %d have no %s",
            self._joining.source,
            counts.matched,
            ours,
            parts,
            100 * counts.matched / max(ours, 1),
            self._key,
            counts.theirs,
            counts.unknown,
            counts.without_key,
            self._key,
        )


def _one_key(source: JoinSource, files: Sequence[JoinedFile]) -> str:
    keys = {file.key.strip().lower() for file in files}
    if len(keys) > 1:
        raise OptionError(
            f"join={str(source)!r}: some files have a column {KEYS[0]}, others only {KEYS[1]}. Join them one by one"
        )
    return keys.pop()


def _one_schema(source: JoinSource, files: Sequence[JoinedFile]) -> pa.Schema:
    """Return the columns of all files together.

    Raises:
        OptionError: a column has types that do not go together, or there is no column besides the keys.
    """
    try:
        schema = pa.unify_schemas([file.schema for file in files], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise OptionError(f"join={str(source)!r}: its files have other columns each: {short(error, 200)}") from error
    if not schema.names:
        raise OptionError(f"join={str(source)!r}: it has no column besides {files[0].key}; to choose samples, include=")
    return schema


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder for what is sorted, on the disk where the result will lie; what a killed run left there goes."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".sorting-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".sorting-", dir=folder) as scratch:
            yield Path(scratch)
