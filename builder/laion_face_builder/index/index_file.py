"""Read one file with rows of the index by row range, whether this project or another program wrote it."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.files import FINGERPRINT_KEY, Fingerprint
from laion_face_builder.index.batches import Cursor
from laion_face_builder.index.foreign import REQUIRED, Doubtful, as_index, faces_of, stored_columns
from laion_face_builder.index.parquet_at import ParquetAt
from laion_face_builder.index.part_column import Known, Spans, known_parts, spans_of
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.schema import INDEX
from laion_face_builder.upstream.tokens import Token

#: Row groups of more rows are read in batches of so many.
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class _Layout:
    """What a file's footer says of its rows."""

    bounds: list[tuple[int, int]]
    known: list[Known]
    stamp: Fingerprint | None


class IndexFile:
    """A file of the index. Nothing is touched before it is asked for; see `ParquetAt`."""

    def __init__(self, address: str, token: Token = None) -> None:
        self.address = address
        self._file = ParquetAt(address, token)
        self._footer: _Layout | None = None
        self._cursor: tuple[tuple[object, ...], Cursor] | None = None

    @property
    def num_rows(self) -> int:
        """How many rows the file has."""
        return self.groups[-1][1] if self.groups else 0

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First row and the row after the last of each row group."""
        return self._layout.bounds

    @property
    def group_bytes(self) -> list[int]:
        """Compressed bytes of each row group, all columns, as they lie in the file and as a client would fetch them."""
        metadata = self._file.parquet.metadata
        groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
        return [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]

    @property
    def stamp(self) -> Fingerprint | None:
        """The fingerprint in the file, if the file is as this project wrote it; None if another program did."""
        return self._layout.stamp

    @property
    def known(self) -> list[Known]:
        """What the statistics of each row group say of the column `part`."""
        return self._layout.known

    def version(self) -> str:
        """Return a text that names the file's content."""
        return self._file.version()

    def spans(self, part: int) -> Spans:
        """Find the runs of the part's rows.

        Raises:
            BadFile: a row has no part.
        """

        def values(start: int, stop: int) -> npt.NDArray[np.int16]:
            return np.asarray(self.read(start, stop, ["part"])["part"].to_numpy(), np.int16)

        return spans_of(part, self.groups, self.known, values)

    def read(self, start: int, stop: int, names: Sequence[str]) -> pa.Table:
        """Read rows start … stop, which are in the file, as in `schema.INDEX`.

        The table may be sliced, filtered, taken from and joined with others: see `foreign`.

        Raises:
            BadFile: not rows of an index; SourceError: a remote file does not answer.
        """
        if start == stop:
            return pa.schema([INDEX.field(name) for name in names]).empty_table()
        _ = self._layout
        return self._file.asked(lambda: self._read(start, stop, names))

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        self._footer, self._cursor = None, None
        self._file.close()

    def _read(self, start: int, stop: int, names: Sequence[str]) -> pa.Table:
        parquet, bounds = self._file.parquet, self.groups
        first = bisect.bisect_right(bounds, start, key=lambda bound: bound[0]) - 1
        last = bisect.bisect_left(bounds, stop, key=lambda bound: bound[0])
        touched = bounds[last - 1][1] - bounds[first][0]
        if touched > 2 * (stop - start) or any(end - begin > ROWS_AT_ONCE for begin, end in bounds[first:last]):
            return pa.Table.from_batches(self._cursor_in(parquet, names).read(start, stop))
        batches = parquet.read_row_groups(range(first, last), columns=self._stored(names)).to_batches()
        rows = itertools.accumulate(map(len, batches), initial=bounds[first][0])
        # Batches are converted whole, before they are cut.
        made = [self._made(names, row, batch) for row, batch in zip(rows, batches, strict=False)]
        return pa.Table.from_batches(made).slice(start - bounds[first][0], stop - start)

    def _cursor_in(self, parquet: pq.ParquetFile, names: Sequence[str]) -> Cursor:
        known = (parquet, *names)
        if self._cursor is None or self._cursor[0] != known:
            made = functools.partial(self._made, names)
            self._cursor = known, Cursor(parquet, self.groups, self._stored(names), ROWS_AT_ONCE, made)
        return self._cursor[1]

    def _stored(self, names: Sequence[str]) -> list[str]:
        return list(names) if self.stamp is not None else stored_columns(names)

    def _made(self, names: Sequence[str], first: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch, whose first row is `first`, to the index's types."""
        try:
            if self.stamp is None:
                return as_index(batch, names)
            batch = batch.select(names).replace_schema_metadata(None)
            if "faces" in names and batch["faces"].null_count:
                batch = batch.set_column(batch.schema.get_field_index("faces"), "faces", faces_of(batch["faces"]))
            return batch
        except Doubtful as error:
            where = f" in row {first + error.row}" if error.row is not None else ""
            raise self._file.bad(error.found + where) from error

    @property
    def _layout(self) -> _Layout:
        if self._footer is None:
            self._footer = self._file.asked(self._read_footer)
        return self._footer

    def _read_footer(self) -> _Layout:
        parquet = self._file.parquet
        metadata, names = parquet.metadata, parquet.schema_arrow.names
        stamp = json.loads((metadata.metadata or {}).get(FINGERPRINT_KEY, b"{}"))
        missing = [name for name in REQUIRED if name not in names]
        if missing:
            raise self._file.bad(f"no column {', '.join(missing)}")
        if stamp.get("kind") == "examples" or "original_width" in names:
            # It has all the columns, but width, height and faces are those of the pictures in it.
            raise self._file.bad("examples with pictures, which `datasets.load_dataset` reads without any code")
        rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        stops = [0, *itertools.accumulate(rows)]
        known = known_parts(metadata)
        bounds = list(itertools.pairwise(stops))
        is_ours = stamp.get("kind") == "index" and _is_untouched(parquet, bounds, known, stamp.get("part"))
        return _Layout(bounds, known, stamp if is_ours else None)


def _is_untouched(parquet: pq.ParquetFile, bounds: list[tuple[int, int]], known: list[Known], part: int | None) -> bool:
    """Tell whether a file with our stamp is as we wrote it: pyarrow hands the stamp on, whatever rows it saves."""
    if not parquet.schema_arrow.equals(INDEX) or any(one not in (None, (part, part)) for one in known):
        return False
    compressions = {parquet.metadata.row_group(group).column(0).compression for group in range(len(known))}
    return compressions <= {"ZSTD"} or bounds == row_group_bounds(bounds[-1][1])
