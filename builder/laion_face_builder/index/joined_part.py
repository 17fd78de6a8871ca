"""Read a part of the index with the side tables that lie beside it, as if they were columns of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.index.joined_columns import MATCHED
from laion_face_builder.index.published import PublishedPart
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.side_table import SidePart, SideTable
from laion_face_builder.schema import INDEX
from laion_face_builder.sources.hub import Token


class JoinedPart(IndexPart):
    """A part whose further columns are those of the index's own files and of side tables."""

    def __init__(
        self, files: Sequence[str], part: int | None, token: Token, number: int, tables: Sequence[SideTable]
    ) -> None:
        super().__init__(files, part, token)
        self._number, self._tables = number, tuple(tables)
        self._sides = [SidePart(table, number) for table in tables]
        self._is_checked = False

    @classmethod
    def beside(
        cls,
        place: str | os.PathLike[str] | PublishedPart,
        number: int,
        tables: Sequence[SideTable],
        token: Token = None,
    ) -> JoinedPart:
        """Return part `number` at `place`, as for `IndexPart.open`, with its rows of `tables`."""
        if isinstance(place, PublishedPart):
            return cls(place.files, place.part, token, number, tables)
        return cls([os.fspath(place)], None, token, number, tables)

    def read(
        self, start: int, stop: int, columns: Sequence[str] | None = None, *, is_lenient: bool = False
    ) -> pa.Table:
        """Read rows start … stop; see `IndexPart.read`. MATCHED tells which of them every side table has.

        Raises:
            NotPrepared: a side table is not there, or was made for another index.
        """
        names = list(INDEX.names) if columns is None else list(columns)
        beside = {name: side for side in self._sides for name in side.table.schema.names}
        own = [name for name in names if name not in beside and name != MATCHED]
        found = super().read(start, stop, own or ["part"], is_lenient=is_lenient)
        if len(own) == len(names):
            return found
        self._check()
        values = dict(zip(own, found.columns, strict=False))
        for side in self._sides:
            wanted = [name for name in names if beside.get(name) is side]
            if wanted:
                values |= dict(zip(wanted, side.read(start, stop, wanted).columns, strict=True))
        if MATCHED in names:
            values[MATCHED] = self._matched(start, stop)
        return pa.table({name: values[name] for name in names})

    @property
    def more(self) -> pa.Schema:
        """The columns beyond those of every index: those of its own files, then those of the side tables."""
        return pa.schema([*super().more, *(field for side in self._sides for field in side.table.schema)])

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        super().close()
        for side in self._sides:
            side.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (JoinedPart, (self._files, self._part, self._token, self._number, self._tables))

    def _matched(self, start: int, stop: int) -> pa.ChunkedArray | pa.Array:
        matched = pa.array([True] * (stop - start), pa.bool_())
        for side in self._sides:
            matched = pc.and_(matched, side.read(start, stop, [MATCHED])[MATCHED])
        return matched

    def _check(self) -> None:
        if not self._is_checked:
            for side in self._sides:
                side.require(self.fingerprint)
            self._is_checked = True
