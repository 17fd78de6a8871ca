"""Read a side table: a table that was joined, laid beside the index row by row; `joining` makes them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder.errors import BadFile, NotPrepared
from laion_face_builder.files import Fingerprint, digest, read_fingerprint
from laion_face_builder.index.joined_columns import MATCHED
from laion_face_builder.index.parquet_at import Cursor, ParquetAt
from laion_face_builder.layout import DataDir
from laion_face_builder.sources import data_store

_ROWS_AT_ONCE = 1 << 14
#: The first column of a side table: whether theirs has a row for this row of the index.
MATCHED_FIELD = pa.field(MATCHED, pa.bool_())


@dataclass(frozen=True)
class SideTable:
    """A table that is joined, as it lies beside the parts that were asked for.

    Attributes:
        folder: where its parts are.
        schema: its columns, by the names that examples have them under.
    """

    folder: Path
    schema: pa.Schema

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part:05d}.parquet"

    def fingerprint(self, part: int) -> Fingerprint:
        """Say what a part was made from.

        Raises:
            NotPrepared: it is not there.
        """
        found = read_fingerprint(self.path(part))
        if found is None:
            raise NotPrepared(f"{self.path(part)}: there is no such file. Load the dataset again, which joins it anew.")
        return found

    def content(self, part: int) -> Fingerprint:
        """Say what a part was made from, whatever was taken down from the index since.

        Raises:
            NotPrepared: it is not there.
        """
        found = dict(self.fingerprint(part))
        index = found.pop("whole_index", found["index"])
        return {**found, "index": index}


_PART = re.compile(r"part-(\d{5})\.parquet")


def side_tables(data: DataDir) -> dict[Path, dict[int, Path]]:
    """List the side tables of a DATA_DIR: by their folders, the files of their parts by number."""
    found: dict[Path, dict[int, Path]] = {}
    for path in data_store.below(data, data.joined("")):
        if (match := _PART.fullmatch(path.name)) and path.parent.parent == data.joined(""):
            found.setdefault(path.parent, {})[int(match[1])] = path
    return found


class SidePart:
    """One part of a side table; opened when it is first read."""

    def __init__(self, table: SideTable, part: int) -> None:
        self.table, self._part = table, part
        self._file = ParquetAt(str(table.path(part)))
        self._cursor: tuple[tuple[object, ...], Cursor] | None = None

    def require(self, index: Fingerprint) -> None:
        """Check that it was made for this index.

        Raises:
            NotPrepared: it was made for another, or is not there.
        """
        if self.table.fingerprint(self._part)["index"] != digest(index):
            raise NotPrepared(
                f"{self.table.path(self._part)}: was joined with another index. Load the dataset again, which joins it "
                "anew."
            )

    def read(self, start: int, stop: int, names: Sequence[str]) -> pa.Table:
        """Read rows start … stop of some of its columns, or MATCHED.

        Raises:
            BadFile: it is damaged.
        """
        try:
            return self._file.asked(lambda: pa.Table.from_batches(self._read(start, stop, names), self._schema(names)))
        except BadFile as error:
            raise BadFile(
                error.file,
                found=error.found,
                expected="a table as it was joined",
                way_out=f"Remove {self.table.folder}, and load the dataset again, which joins it anew.",
            ) from error.__cause__

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._cursor = None
        self._file.close()

    def _read(self, start: int, stop: int, names: Sequence[str]) -> list[pa.RecordBatch]:
        parquet = self._file.parquet
        known = (parquet, *names)
        if self._cursor is None or self._cursor[0] != known:
            metadata = parquet.metadata
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            stops = np.cumsum([0, *rows]).tolist()
            bounds = list(itertools.pairwise(stops))
            self._cursor = known, Cursor(parquet, bounds, names, _ROWS_AT_ONCE, lambda _, batch: batch.select(names))
        return [batch.replace_schema_metadata(None) for batch in self._cursor[1].read(start, stop)]

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        return pa.schema([MATCHED_FIELD if name == MATCHED else self.table.schema.field(name) for name in names])
