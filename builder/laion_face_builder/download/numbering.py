"""Keep the row numbers of a download when rows leave the index: plan, rounds, tars and checked files go on with them.

images/part-000NN.checked/
  removed.parquet                 `row`, the download's numbers of the rows that were taken down; `removal`, the number
                                  of the removal that each went with, from 1 on

A download row is a row of the index as it was when the download began. The index of now lacks the rows that went with
the first so many removals: how many, its own number of rows tells. An index that lies elsewhere keeps them all, and
one whose removal was broken off and then found more lacks the rows of none or all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.download.plan import Mask, PartFiles, Rows, listed
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import digest, make_fingerprint, stamped, written_whole
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removed import Removed
from laion_face_builder.parquet_files import rows_in, table_of
from laion_face_builder.sources import data_store

#: `rows_of` an index: where a download row is not in it.
NOWHERE = -1
_TAKEN_DOWN = pa.schema([("row", pa.int64()), ("removal", pa.int32())])


@dataclass(frozen=True, eq=False)
class GoneRows:
    """The download rows that are gone, int64[k] ascending, and by which removal each went, int32[k]."""

    rows: Rows
    removals: np.ndarray[Any, np.dtype[np.int32]]

    @classmethod
    def none(cls) -> GoneRows:
        """Return those of a part from which nothing was taken down."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int32))

    @classmethod
    def of(cls, files: PartFiles) -> GoneRows:
        """Read those of a part."""
        if not data_store.brought(files.data, files.removed):
            return cls.none()
        table = table_of(files.removed)
        return cls(table["row"].to_numpy().astype(np.int64), table["removal"].to_numpy().astype(np.int32))

    def with_rows(self, rows: Rows, removal: int) -> GoneRows:
        """Return these and `rows`, ascending, as far as they are not among them."""
        new = np.setdiff1d(rows, self.rows)
        every = np.concatenate([self.rows, new])
        removals = np.concatenate([self.removals, np.full(len(new), removal, np.int32)])
        order = np.argsort(every)
        return GoneRows(every[order], removals[order])

    def write(self, files: PartFiles) -> None:
        """Write them beside the plan."""
        schema = stamped(_TAKEN_DOWN, make_fingerprint("taken down", part=files.part))
        with written_whole(files.removed) as partial:
            table = pa.table([pa.array(self.rows), pa.array(self.removals)], schema=schema)
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        data_store.send(files.data, files.removed)

    @property
    def latest(self) -> int:
        """The number of the latest removal; 0 if there was none."""
        return int(self.removals.max()) if len(self.removals) else 0

    @property
    def stamp(self) -> dict[str, str]:
        """What a sidecar's fingerprint says of them: {} if nothing is gone."""
        return {"removed": digest(self.rows.tolist())} if len(self.rows) else {}

    def contains(self, rows: Rows) -> Mask:
        """Tell, bool[n], which of these download rows are gone."""
        return np.asarray(np.isin(rows, self.rows))


@dataclass(frozen=True, eq=False)
class Numbering:
    """Which row of an index each download row is.

    Attributes:
        of_index: int64[n]: the download row of each of the index's n rows, ascending.
        gone: what was taken down, whether the index has it still or not.
        removal: the latest removal whose rows the index lacks; 0 for an index that has them all.
        total: how many download rows there are.
    """

    of_index: Rows
    gone: GoneRows
    removal: int
    total: int

    @classmethod
    def of(cls, files: PartFiles, index_rows: int) -> Numbering:
        """Find the numbering of a part's download, which has its plan, for an index of so many rows.

        Raises:
            StateConflict: the index has lost or won rows that no removal has taken from these pictures.
        """
        total, gone = rows_in(data_store.bring(files.data, files.plan)), GoneRows.of(files)
        for removal in range(gone.latest + 1):
            lacks = gone.rows[gone.removals <= removal]
            if total - len(lacks) == index_rows:
                return cls(np.delete(np.arange(total, dtype=np.int64), lacks), gone, removal, total)
        raise StateConflict(
            f"{files.plan}: these pictures are of an index with {total:,} rows, of which {len(gone.rows):,} were taken "
            f"down since; the index has {index_rows:,}. Run `laion-face remove` with the list of what was taken from "
            f"the index, if that was done elsewhere; else bring back the index that was there, or move "
            f"{files.data.tars(files.part)}* away to start over."
        )

    @cached_property
    def is_gone(self) -> Mask:
        """bool[n]: which rows of the index are taken down, though it has them."""
        return self.gone.contains(self.of_index)

    def rows_of(self, rows: Rows) -> Rows:
        """Return the index rows, int64[n], of these download rows; `NOWHERE` for those that it lacks or are gone."""
        found = np.full(self.total, NOWHERE, np.int64)
        found[self.of_index] = np.where(self.is_gone, NOWHERE, np.arange(len(self.of_index)))
        return np.asarray(found[rows])


def listed_rows(index: IndexPart, numbering: Numbering, rows: Rows, blur_faces: bool = False) -> pa.Table:
    """Return what these download rows, ascending, carry into their tars, as `plan.listed`.

    Of what was taken down nothing is read; its row has nothing but its number.
    """
    places = numbering.rows_of(rows)
    kept = places != NOWHERE
    table = listed(index, places[kept], blur_faces)
    return _spread(table, rows, kept)


def without_removed(table: pa.Table, removed: Removed) -> tuple[pa.Table, Mask]:
    """Return `listed_rows` with nothing but their numbers where `removed` names them, and where that is, bool[n]."""
    gone = removed.mask(table)
    if not gone.any():
        return table, gone
    return _spread(table.filter(pa.array(~gone)), table["row"].to_numpy(), ~gone), gone


def blank(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of `listed_rows`, as a dict, with nothing but its number."""
    return {**dict.fromkeys(values), "row": values["row"]}


def _spread(table: pa.Table, rows: Rows, kept: Mask) -> pa.Table:
    """Give the rows of `table` the places where `kept` is true; all are numbered as `rows`, the others are null."""
    spread = table if kept.all() else table.take(pa.array(np.cumsum(kept) - 1, mask=~kept))
    return spread.set_column(spread.schema.get_field_index("row"), "row", pa.array(rows, pa.int64()))
