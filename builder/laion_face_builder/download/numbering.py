"""Keep the row numbers of a download when rows leave the index: plan, rounds, tars and checked files go on with them.

A download row is a row of the index as it was when the download began. The plan knows the sample id of each, and null
once it was taken down here. The index of now may lack some of these rows: those that were taken down with it, or, where
it lies elsewhere, those that its owner took down. It may have rows still that were taken down here. Which of its rows
is which is told by sample ids: they come in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.download.plan import PLAN, Mask, PartFiles, Rows, listed, save_plan, without_ids
from laion_face_builder.errors import StateConflict
from laion_face_builder.files import digest, read_fingerprint
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removed import Removed
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import opened, rows_in, table_of
from laion_face_builder.sources import data_store

#: `rows_of` an index: where a download row is not in it.
NOWHERE = -1


def ids_of_download(files: PartFiles) -> pa.Array:
    """Return the sample id of each download row, int64[total], null where it was taken down.

    Plans of earlier versions have none: then the sidecar says them.

    Raises:
        StateConflict: neither does.
    """
    plan, sidecar = data_store.bring(files.data, files.plan), files.data.sidecar(files.part)
    if has_ids(files):
        return table_of(plan, ["sample_id"])["sample_id"].combine_chunks()
    if data_store.brought(files.data, sidecar) and rows_in(sidecar) == rows_in(plan):
        return table_of(sidecar, ["sample_id"])["sample_id"].combine_chunks()
    raise StateConflict(
        f"{plan}: an earlier version wrote it, and it does not say which samples are downloaded. Run `laion-face "
        f"download` with --parts {files.part} and the index that was there when the download began."
    )


def has_ids(files: PartFiles) -> bool:
    """Say whether a part's plan, which is there, has sample ids."""
    with opened(data_store.bring(files.data, files.plan)) as file:
        return "sample_id" in file.schema_arrow.names


def learn_samples(files: PartFiles, index: IndexPart) -> None:
    """Write the plan of an earlier version again with sample ids: the index's if it has as many rows, as it had then.

    Raises:
        StateConflict: it has not, and nothing else says them.
    """
    plan = table_of(files.plan)
    if index.num_rows == plan.num_rows:
        ids = index.read(0, index.num_rows, ["sample_id"])["sample_id"]
    else:
        ids = pa.chunked_array([ids_of_download(files)])
    save_plan(files, plan.append_column("sample_id", ids), read_fingerprint(files.plan) or {})


def forget_samples(files: PartFiles, rows: Rows) -> pa.Array:
    """Have the plan forget which samples these download rows are; return its ids, int64[total], null where gone."""
    ids = ids_of_download(files)
    gone = ids.is_null().to_numpy(zero_copy_only=False)
    if not gone[rows].all():
        gone[rows] = True
        plan = without_ids(pa.table([table_of(files.plan, ["status"])["status"], ids], schema=PLAN), gone)
        save_plan(files, plan, read_fingerprint(files.plan) or {})
        ids = plan["sample_id"].combine_chunks()
    return ids


@dataclass(frozen=True, eq=False)
class Numbering:
    """Which row of an index, or of a sidecar made for one, each download row is.

    Attributes:
        of_index: int64[n]: the download row of each of the index's n rows, ascending.
        ids: int64[total]: the sample id of each download row, null where it was taken down, whether the index has it
            still or not.
    """

    of_index: Rows
    ids: pa.Array

    @classmethod
    def of(cls, files: PartFiles, index: IndexPart) -> Numbering:
        """Find the numbering of a part's download, which has its plan, for the index that it is made from.

        Raises:
            StateConflict: the index has rows that the download does not know.
        """
        ids = ids_of_download(files)
        if index.num_rows == len(ids):
            return cls.lacking(ids)
        return cls(_placed(files, ids, index.read(0, index.num_rows, ["sample_id"])["sample_id"]), ids)

    @classmethod
    def of_sidecar(cls, files: PartFiles) -> Numbering:
        """Find the numbering for a part's sidecar, which is there.

        Raises:
            StateConflict: it has rows that the download does not know. BadFile: it is damaged.
        """
        ids = ids_of_download(files)
        listed = table_of(files.data.sidecar(files.part), ["sample_id"])["sample_id"]
        return cls.lacking(ids) if len(listed) == len(ids) else cls(_placed(files, ids, listed), ids)

    @classmethod
    def lacking(cls, ids: pa.Array, rows: Sequence[int] | Rows = ()) -> Numbering:
        """Return the numbering for an index that lacks some download rows, and no others."""
        return cls(np.delete(np.arange(len(ids), dtype=np.int64), np.asarray(rows, np.int64)), ids)

    @property
    def total(self) -> int:
        """How many download rows there are."""
        return len(self.ids)

    @cached_property
    def gone(self) -> Rows:
        """The download rows that were taken down, int64[k] ascending."""
        return np.flatnonzero(self.ids.is_null().to_numpy(zero_copy_only=False))

    @cached_property
    def lacks(self) -> Rows:
        """The download rows that the index lacks, int64[l] ascending."""
        return np.setdiff1d(np.arange(self.total, dtype=np.int64), self.of_index, assume_unique=True)

    @cached_property
    def is_gone(self) -> Mask:
        """bool[n]: which rows of the index are taken down, though it has them."""
        return np.asarray(self.ids.is_null().to_numpy(zero_copy_only=False)[self.of_index])

    @property
    def sample_ids(self) -> pa.Array:
        """int64[n]: of the index's rows; null where they are taken down."""
        return self.ids.take(pa.array(self.of_index))

    @property
    def stamp(self) -> dict[str, str]:
        """What a sidecar's fingerprint says of rows that are gone, or that only its index lacks; {} if it has all."""
        gone = {"removed": digest(self.gone.tolist())} if len(self.gone) else {}
        is_usual = not len(self.lacks) or np.array_equal(self.lacks, self.gone)
        return gone if is_usual else {**gone, "lacks": digest(self.lacks.tolist())}

    def say_lacking(self, files: PartFiles) -> None:
        """Say how many rows the index has lost that nobody has taken down here."""
        if count := len(np.setdiff1d(self.lacks, self.gone)):
            logger.warning(
                "part %d: %d rows have left the index since the download began; their pictures are no longer read, "
                "and are in %s until `laion-face remove` with --from-published takes them out",
                files.part,
                count,
                files.data.tars(files.part),
            )

    def rows_of(self, rows: Rows) -> Rows:
        """Return the index rows, int64[n], of these download rows; `NOWHERE` for those that it lacks or are gone."""
        found = np.full(self.total, NOWHERE, np.int64)
        found[self.of_index] = np.where(self.is_gone, NOWHERE, np.arange(len(self.of_index)))
        return np.asarray(found[rows])


def _placed(files: PartFiles, ids: pa.Array, asked: pa.ChunkedArray) -> Rows:
    """Return the download row of each of these samples of an index, int64[n] ascending.

    A sample that the download does not know any more was taken down. Which of the rows it was that lie between its
    neighbours' is all the same: nothing is read of any of them.
    """
    is_known = ids.is_valid().to_numpy(zero_copy_only=False)
    rows, gone, values = np.flatnonzero(is_known), np.flatnonzero(~is_known), ids.drop_null().to_numpy()
    order, wanted = np.argsort(values, kind="stable"), asked.fill_null(0).to_numpy()
    at = np.searchsorted(values, wanted, sorter=order)
    inside = (at < len(values)) & pc.is_valid(asked).to_numpy()
    inside[inside] = values[order[at[inside]]] == wanted[inside]
    found = np.full(len(wanted), NOWHERE, np.int64)
    found[inside] = rows[order[at[inside]]]
    number = np.arange(len(wanted))
    since = number - np.maximum.accumulate(np.where(inside, number, -1)) - 1
    first = np.searchsorted(gone, np.maximum.accumulate(found), side="right")
    place = (first + since)[~inside]
    found[~inside] = np.append(gone, NOWHERE)[np.minimum(place, len(gone))]
    if (np.diff(found, prepend=-1) <= 0).any():
        raise StateConflict(
            f"{files.plan}: these pictures are of an index with {len(ids):,} rows, of which {len(gone):,} were taken "
            f"down since; the index has {len(wanted):,}, and others among them. Bring back the index that was there, "
            f"or move {files.data.tars(files.part)}* away to start over."
        )
    return found


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
