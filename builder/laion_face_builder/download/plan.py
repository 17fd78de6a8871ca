"""Decide what is downloaded of a part: the plan, the rounds, and what each sample carries into its tar.

images/
  part-000NN.fingerprint            what the downloads were made with, as JSON
  part-000NN/00000.tar …            round 0; retry-1/00000.tar … are the later rounds, over what had failed
  part-000NN/_tmp/                  shards that are being written
  part-000NN.checked/
    plan.parquet                    every index row: its status, "filtered", "bad_url", "cannot_blur", or null if it is
                                    to be fetched; and its sample id, null once it is taken down
    round-1.parquet …               the rows of each later round, fixed when it starts
    0-00000.parquet …               each finished shard's rows of the sidecar: ROUND-SHARD
  part-000NN.parquet                the sidecar, made from all of these

All of these number the rows of the index as it was when the download began; see `numbering` for when rows have left it.
A round that has its file has been started; it is finished when each of its shards has its rows of the sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.download.blur import BOXES_COLUMN, boxes_to_blur
from laion_face_builder.errors import NotPrepared, PictureError
from laion_face_builder.fetch.addresses import WebAddress
from laion_face_builder.files import Fingerprint, stamped, written_whole
from laion_face_builder.images.reasons import FINAL, Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import Removals, noted
from laion_face_builder.index.removed import Removed, hashes_of_ids
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import table_of
from laion_face_builder.schema import INDEX
from laion_face_builder.shown import shown
from laion_face_builder.sources import data_store

PLAN = pa.schema([("status", pa.string()), ("sample_id", pa.int64())])
ROUND = pa.schema([("row", pa.int64())])

_PLANNED_AT_ONCE = 1 << 16

Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

#: Index column -> its name in the tars. There width and height are those of the stored picture.
LISTED = {
    "sample_id": "sample_id",
    "part": "part",
    "width": "laion_width",
    "height": "laion_height",
    "license": "license",
    "nsfw": "nsfw",
    "similarity": "similarity",
    "faces": "faces",
}
#: The extra columns that travel along; `row` is the index row.
CARRIED = ("row", *LISTED.values())


class RowFilters(Protocol):
    """Which index rows are wanted; see `filters.Filters`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `mask` needs, which may be more than an index has."""
        ...

    def mask(self, table: pa.Table) -> Mask:
        """Return bool[n]: which rows of `table` are wanted; it has all index columns."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return what defines the filters, for fingerprints."""
        ...


@dataclass(frozen=True)
class PartFiles:
    """Names of everything that belongs to the download of one part."""

    data: DataDir
    part: int

    def _beside(self, ending: str) -> Path:
        tars = self.data.tars(self.part)
        return tars.with_name(tars.name + ending)

    @property
    def checked(self) -> Path:
        """The folder with the plan, the rounds and the shards' rows of the sidecar."""
        return self._beside(".checked")

    @property
    def plan(self) -> Path:
        """The plan: a status and a sample id for every index row."""
        return self.checked / "plan.parquet"

    @property
    def writers(self) -> Path:
        """The lock file that every process that writes tars holds."""
        return self.data.tars(self.part).with_name(f".part-{self.part:05d}.writers.lock")

    def round(self, number: int) -> Path:
        """Return the path of a later round's rows."""
        return self.checked / f"round-{number}.parquet"

    def tars(self, number: int) -> Path:
        """Return the folder of a round's tars."""
        folder = self.data.tars(self.part)
        return folder / f"retry-{number}" if number else folder

    def checked_tar(self, number: int, shard: int) -> Path:
        """Return the path of one shard's rows of the sidecar."""
        return self.checked / f"{number}-{shard:05d}.parquet"

    def tar_name(self, number: int, shard: int) -> str:
        """Return the name of a shard's tar relative to the part's folder, as the sidecar has it."""
        return f"retry-{number}/{shard:05d}.tar" if number else f"{shard:05d}.tar"

    def rounds_started(self) -> int:
        """Count the rounds beyond the first that have been started."""
        number = 0
        while data_store.brought(self.data, self.round(number + 1)):
            number += 1
        return number


@contextmanager
def opened_index(data: DataDir, part: int, index: IndexPart | None = None) -> Iterator[IndexPart]:
    """Yield `index` if it is given, and leave it open; else open the one in `data`, and close it afterwards.

    Raises:
        NotPrepared: there is none.
    """
    if index is not None:
        yield index
        return
    place = data_store.place(data, data.index(part))
    if not data_store.has(data, data.index(part)):
        raise NotPrepared(
            f"{shown(place)}: there is no such index. Run `laion-face prepare` with --parts {part} first."
        )
    with IndexPart.open(place) as own:
        yield own


def write_plan(
    files: PartFiles, index: IndexPart, filters: RowFilters | None, fingerprint: Fingerprint, blur_faces: bool = False
) -> None:
    """Write the plan: which rows are fetched; not those whose faces are to be blurred and cannot be.

    An index that lies elsewhere may have rows that were taken down here: they are noted, and known by nothing.
    """
    statuses = pa.chunked_array(planned(index, filters, blur_faces), pa.string())
    plan = pa.table([statuses, index.read(0, index.num_rows, ["sample_id"])["sample_id"]], schema=PLAN)
    if (removed := Removals.of(files.data).removed).has_rows:
        gone = rows_named(index, removed)
        noted(files.data, {files.part: hashes_of_ids(plan["sample_id"].filter(pa.array(gone)).to_pylist())})
        plan = without_ids(plan, gone)
    save_plan(files, plan, fingerprint)


def rows_named(index: IndexPart, removed: Removed) -> Mask:
    """Tell which rows of an index are named as taken down, bool[n]; addresses are read a row group at a time."""
    rows = (index.read(start, stop, ["sample_id", "url"]) for start, stop in index.row_groups)
    return np.concatenate([np.zeros(0, bool), *map(removed.mask, rows)])


def without_ids(plan: pa.Table, gone: Mask) -> pa.Table:
    """Return a plan that does not say which samples these rows are, bool[n]."""
    ids = pc.if_else(pa.array(gone), pa.scalar(None, pa.int64()), plan["sample_id"])
    return plan.set_column(plan.schema.get_field_index("sample_id"), PLAN.field("sample_id"), ids)


def save_plan(files: PartFiles, plan: pa.Table, fingerprint: Fingerprint) -> None:
    """Write the plan, `PLAN`, to its place."""
    schema = stamped(PLAN, fingerprint)
    with written_whole(files.plan) as partial:
        pq.write_table(plan.cast(schema), partial, row_group_size=_PLANNED_AT_ONCE, write_page_checksum=True)
    data_store.send(files.data, files.plan)


def planned(index: IndexPart, filters: RowFilters | None, blur_faces: bool = False) -> Iterator[pa.Array]:
    """Yield the statuses of the plan, a row group at a time: why a row is not fetched, null if it is."""
    columns = list(dict.fromkeys((*INDEX.names, *(() if filters is None else filters.columns))))
    for start, stop in index.row_groups:
        table = index.read(start, stop, columns)
        keep = np.ones(stop - start, dtype=bool) if filters is None else filters.mask(table)
        urls = zip(table["url"].to_pylist(), keep, strict=True)
        status = pa.array([_url_status(url) if kept else Reason.FILTERED for url, kept in urls], pa.string())
        if blur_faces:
            lost = pc.and_(pc.is_null(boxes_to_blur(table)), pc.is_null(status))
            status = pc.if_else(lost, Reason.CANNOT_BLUR, status)
        yield status


def _url_status(url: str | None) -> str | None:
    try:
        WebAddress.parse(url or "")
    except PictureError as error:
        return error.reason
    return None


def write_round(files: PartFiles, number: int, rows: Rows, fingerprint: Fingerprint) -> None:
    """Write the rows of a later round, which fixes them."""
    table = pa.table([pa.array(rows, pa.int64())], schema=stamped(ROUND, fingerprint))
    with written_whole(files.round(number)) as partial:
        pq.write_table(table, partial, write_page_checksum=True)
    data_store.send(files.data, files.round(number))


def rows_of_round(files: PartFiles, number: int) -> Rows:
    """Return the rows of a round, int64[n], ascending, in the order of its shards."""
    if number:
        return np.asarray(table_of(data_store.bring(files.data, files.round(number)))["row"].to_numpy(), dtype=np.int64)
    return rows_to_fetch(table_of(data_store.bring(files.data, files.plan))["status"])


def rows_to_fetch(plan: pa.ChunkedArray) -> Rows:
    """Return the index rows that a plan wants, int64[n]."""
    return np.flatnonzero(pc.is_null(plan).to_numpy())


def rows_to_retry(statuses: pa.ChunkedArray) -> Rows:
    """Return the index rows, int64[n], that failed so far, by the sidecar's `statuses`, and may still come."""
    settled = pc.is_in(statuses, value_set=pa.array([Reason.OK, *FINAL]))
    return np.flatnonzero(pc.invert(settled).to_numpy())


def listed(index: IndexPart, rows: Rows, blur_faces: bool = False) -> pa.Table:
    """Return what these index rows, ascending, carry into their tars, in the order of img2dataset's columns.

    The columns are `CARRIED`, with `blur_faces` the boxes to blur, caption and url.
    """
    tables = [_listed(index.read(0, 0, ["url", "caption", *LISTED]), rows[:0], blur_faces)]
    for start, stop in index.row_groups:
        chosen = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        if len(chosen):
            table = index.read(start, stop, ["url", "caption", *LISTED]).take(pa.array(chosen - start))
            tables.append(_listed(table, chosen, blur_faces))
    return pa.concat_tables(tables)


def _listed(table: pa.Table, rows: Rows, blur_faces: bool) -> pa.Table:
    columns: dict[str, Any] = {"row": pa.array(rows, pa.int64())}
    columns |= {name: table[column] for column, name in LISTED.items()}
    # NaN is not valid JSON, and would make the sample's .json unreadable for strict readers.
    similarity = columns["similarity"]
    columns["similarity"] = pc.if_else(pc.is_nan(similarity), pa.scalar(None, pa.float64()), similarity)
    if blur_faces:
        columns[BOXES_COLUMN] = boxes_to_blur(table)
    return pa.table({**columns, "caption": table["caption"], "url": table["url"]})
