"""Read a part of the index, local or remote, by row range. `writer` makes parts.

Examples are made from rows as plain Python values, a few at a time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import BadFile
from laion_face_builder.files import Fingerprint, make_fingerprint
from laion_face_builder.index.index_file import ROWS_AT_ONCE, IndexFile, Spans
from laion_face_builder.index.published import PublishedPart
from laion_face_builder.schema import INDEX
from laion_face_builder.shown import short, shown
from laion_face_builder.sources.hub import Token

_ROWS_AT_ONCE = 32
_NOTHING_MORE = pa.schema([])


class RowBatch:
    """Some index rows; their Python values are made, all at once, when one of them is first asked for.

    Until then they are columns. Rows wait by the thousand for their pictures, and that many dicts, lists and floats
    would be walked again and again by Python's garbage collector: half of what a stream's consumer thread did.
    """

    __slots__ = ("_rows", "_table", "urls")

    def __init__(self, table: pa.Table) -> None:
        self._table, self._rows = table, list[dict[str, Any]]()
        #: The addresses alone.
        self.urls: list[str | None] = table["url"].to_pylist()

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return one row as plain Python values."""
        if self._table is not None:
            self._rows, self._table = list(_as_dicts(self._table)), None
        return self._rows[place]

    def __len__(self) -> int:
        return len(self.urls)


def in_batches(table: pa.Table) -> Iterator[RowBatch]:
    """Yield the rows of `table` (with at least the column `url`), a few at a time, so that the first comes soon."""
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        yield RowBatch(table.slice(start, _ROWS_AT_ONCE))


def _as_dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield each row as a dict. Faces go by way of NumPy: Arrow makes every nested number an object first."""
    for batch in table.to_batches():
        columns = [_faces(column) if name == "faces" else column.to_pylist() for name, column in _columns(batch)]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _columns(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    return zip(batch.schema.names, batch.columns, strict=True)


def _faces(column: pa.ListArray) -> list[list[dict[str, Any]]]:
    flat = column.flatten()
    boxes = flat.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).tolist()
    landmarks = flat.field("landmarks").flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 5, 2).tolist()
    scores = flat.field("score").to_numpy(zero_copy_only=False).tolist()
    named = zip(boxes, landmarks, scores, strict=True)
    faces = [{"box": box, "landmarks": points, "score": score} for box, points, score in named]
    stops = itertools.accumulate(pc.list_value_length(column).to_pylist(), initial=0)
    return [faces[start:stop] for start, stop in itertools.pairwise(stops)]


class IndexPart:
    """One part of the index; opened when it is first read, and again in every process that it travels to.

    A part is a file, or the rows of one or several files whose column `part` has its number, in the files' order.
    Forked processes share file positions and connections with their parent, so nothing open is ever used in another
    process than the one that opened it. Close it, or use it as a context manager.
    """

    def __init__(self, files: Sequence[str], part: int | None = None, token: Token = None) -> None:
        self._files, self._part, self._token = tuple(files), part, token
        first = shown(self._files[0])
        self.address = first if len(files) == 1 else f"{first} and {len(files) - 1} more"
        self._pieces: list[_Piece] | None = None

    @classmethod
    def open(cls, place: str | os.PathLike[str] | PublishedPart, token: Token = None) -> IndexPart:
        """Return the part at `place`; nothing is opened yet.

        Args:
            place: a local path, an fsspec address such as hf://datasets/OWNER/NAME/FILE, or what
                `published.find_published` found. All rows of a path or an address are the part's.
            token: for hf:// addresses; None means the one that `hf auth login` or HF_TOKEN gave, False none.
        """
        if isinstance(place, PublishedPart):
            return cls(place.files, place.part, token)
        return cls([os.fspath(place)], None, token)

    @property
    def num_rows(self) -> int:
        """How many rows the part has."""
        return self._all[-1].stop

    @property
    def fingerprint(self) -> Fingerprint:
        """What the part was made from; of a part that another program saved, the content of its files."""
        files = [piece.file for piece in self._all]
        stamp = files[0].stamp if len(files) == 1 else None
        if stamp is not None and self._part in (None, stamp.get("part", self._part)):
            return dict(stamp)
        which = {} if self._part is None else {"part": self._part}
        return make_fingerprint("foreign index", files=[file.version() for file in files], **which)

    @property
    def more(self) -> pa.Schema:
        """The columns beyond those of every index, which its files have if another program saved them."""
        fields = {field.name: field for piece in reversed(self._all) for field in piece.file.more}
        order = dict.fromkeys(name for piece in self._all for name in piece.file.more.names)
        return pa.schema([fields[name] for name in order])

    @property
    def row_groups(self) -> list[tuple[int, int]]:
        """First row and the row after the last of each stretch that is best read at once.

        A row group, what the part has of it, or a piece of it if it is large.
        """
        return [(start, stop) for start, stop, _ in self._stretches()]

    @property
    def row_group_bytes(self) -> list[int]:
        """Compressed bytes of each of `row_groups`, all columns, as they lie in the file; shared out by rows."""
        return [size for _, _, size in self._stretches()]

    def read(
        self, start: int, stop: int, columns: Sequence[str] | None = None, *, is_lenient: bool = False
    ) -> pa.Table:
        """Read rows start … stop, as in `schema.INDEX`; only the row groups and columns that are needed are read.

        Args:
            columns: names of the index's columns and of `more`, in the order wanted; None means the index's.
            is_lenient: a row that cannot be read (a face that is not whole, text that is not UTF-8) has null faces, and
                whatever can be read of it, rather than that nothing is read.

        Raises:
            IndexError: no such rows in this part; BadFile: no index; SourceError: a remote file does not answer.
        """
        names = list(INDEX.names) if columns is None else list(columns)
        if not 0 <= start <= stop <= self.num_rows:
            raise IndexError(f"{self.address}: rows {start} to {stop} of {self.num_rows}")
        more = self.more if any(name not in INDEX.names for name in names) else _NOTHING_MORE
        schema = pa.schema([INDEX.field(name) if name in INDEX.names else more.field(name) for name in names])
        tables = [
            table if not more.names else self._completed(table, schema)
            for piece in self._all
            if max(start, piece.first) < min(stop, piece.stop)
            for table in piece.read(max(start, piece.first), min(stop, piece.stop), names, is_lenient)
        ]
        if len(tables) == 1:
            return tables[0]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def _completed(self, table: pa.Table, schema: pa.Schema) -> pa.Table:
        """Return rows of a file with the columns that only other files of the part have, as nulls."""
        there = dict(zip(table.column_names, table.columns, strict=True))
        try:
            columns = [
                there[field.name].cast(field.type) if field.name in there else pa.nulls(table.num_rows, field.type)
                for field in schema
            ]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadFile(
                self.address,
                found=f"a column of other types in other files: {short(error, 200)}",
                expected="one type a column in all files of a part",
                way_out="Write them with the same types, or name another index.",
            ) from error
        return pa.table(columns, schema=schema)

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        pieces, self._pieces = self._pieces, None
        for piece in pieces or ():
            piece.file.close()

    def __enter__(self) -> IndexPart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (IndexPart, (self._files, self._part, self._token))

    def __repr__(self) -> str:
        return f"IndexPart({self.address!r})"

    @property
    def _all(self) -> list[_Piece]:
        if self._pieces is None:
            self._pieces = self._opened()
        return self._pieces

    def _opened(self) -> list[_Piece]:
        pieces: list[_Piece] = []
        for address in self._files:
            file = IndexFile(address, self._token)
            spans = np.array([[0, file.num_rows]]) if self._part is None else file.spans(self._part)
            pieces.append(_Piece(file, pieces[-1].stop if pieces else 0, spans))
        return pieces

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        for piece in self._all:
            yield from piece.stretches()


def index_fingerprint_at(path: Path) -> Fingerprint | None:
    """Say what the part in a local file was made from, as `IndexPart.fingerprint`; None if there is no such file.

    Raises:
        BadFile: the file is no index.
    """
    if not path.exists():
        return None
    with IndexPart.open(path) as part:
        return part.fingerprint


@dataclass(frozen=True)
class _Piece:
    """What a file has of a part.

    Attributes:
        first: which row of the part the piece's first row is.
        spans: the runs of the file's rows that are the part's.
    """

    file: IndexFile
    first: int
    spans: Spans

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """How many rows there are before each run, and in all: int64[k + 1]."""
        return np.append(0, np.cumsum(self.spans[:, 1] - self.spans[:, 0]))

    @property
    def stop(self) -> int:
        """The part's row after the last of this piece."""
        return self.first + int(self._ends[-1])

    def read(self, start: int, stop: int, names: Sequence[str], is_lenient: bool) -> Iterator[pa.Table]:
        """Read rows start … stop of the part, which are in this piece."""
        spans = self._within(start - self.first, stop - self.first)
        while len(spans):
            # Runs that are close to each other are read together, and what lies between them is dropped.
            near = spans[: np.searchsorted(spans[:, 1], spans[0, 0] + ROWS_AT_ONCE) or 1]
            begin, end = int(near[0, 0]), int(near[-1, 1])
            table = self.file.read(begin, end, self._there(names), is_lenient=is_lenient)
            yield table if len(near) == 1 else table.filter(pa.array(_covered(near - begin, end - begin)))
            spans = spans[len(near) :]

    def _there(self, names: Sequence[str]) -> Sequence[str]:
        if all(name in INDEX.names for name in names):
            return names
        there = {*INDEX.names, *self.file.more.names}
        return [name for name in names if name in there] or ["part"]

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """Yield first row, the row after the last, and bytes of what is best read at once."""
        for (start, stop), size in zip(self.file.groups, self.file.group_bytes, strict=True):
            first, last = self._before(start), self._before(stop)
            for begin in range(first, last, ROWS_AT_ONCE):
                end = min(begin + ROWS_AT_ONCE, last)
                yield self.first + begin, self.first + end, size * (end - begin) // (stop - start)

    def _before(self, row: int) -> int:
        """Count the piece's rows that lie before the file's `row`."""
        run = int(np.searchsorted(self.spans[:, 0], row))
        return int(self._ends[run]) - (max(0, int(self.spans[run - 1, 1]) - row) if run else 0)

    def _within(self, start: int, stop: int) -> Spans:
        """Return the runs of the piece's rows start … stop."""
        first, last = int(np.searchsorted(self._ends, start, side="right")) - 1, int(np.searchsorted(self._ends, stop))
        spans = self.spans[first:last].copy()
        spans[0, 0] += start - self._ends[first]
        spans[-1, 1] -= self._ends[last] - stop
        return spans


def _covered(spans: Spans, rows: int) -> npt.NDArray[np.bool_]:
    """Tell, bool[rows], which rows are in one of the runs."""
    edges = np.zeros(rows + 1, np.int8)
    edges[spans[:, 0]] += 1
    edges[spans[:, 1]] -= 1
    return np.cumsum(edges[:-1]).astype(bool)
