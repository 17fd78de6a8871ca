"""Count what is in the index, what a filter keeps of it, and what became of the pictures.

Counting goes by whole columns, never by a loop over faces. In memory are one row group at a time, and the status and
length columns of a part's sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.errors import OptionError
from laion_face_builder.examples import parts
from laion_face_builder.images import reasons
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.filters import box_sides
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.looks.tallies import Kept, PartStats
from laion_face_builder.options import Options

Array = np.ndarray[Any, np.dtype[Any]]

_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/:?#@\[]*)"
_COLUMNS = ("url", "width", "height", "n_faces", "faces")


@dataclass(frozen=True)
class Stats:
    """Everything that was counted: in total, and `asked` and `usable` of each part that has pictures."""

    options: Options
    total: PartStats
    by_part: dict[int, tuple[int, int]]

    @property
    def bytes_a_picture(self) -> float:
        """Average size of the usable pictures that are there, or else the usual size of such pictures."""
        usable, size = self.total.pictures.all, self.total.picture_bytes.all
        return size / usable if usable else float(parts.BYTES_A_PICTURE)


def count(options: Options) -> Stats:
    """Count all parts of `options`, which have to be prepared.

    Raises:
        OptionError: images="download"; StateConflict: pictures were downloaded for another index.
    """
    refuse_download(options)
    total, by_part = PartStats(), {}
    with progress.bar("counting", len(options.parts)) as bar:
        for part in options.parts:
            found = _count_part(options, part)
            if found.asked:
                by_part[part] = found.asked, found.usable
            total.add(found)
            total.keep_hosts()
            bar.update()
    return Stats(options, total, by_part)


def refuse_download(options: Options) -> None:
    """Raise OptionError for images="download"."""
    if options.images == "download":
        raise OptionError("images='download': run `laion-face download` first; stats reads what is there")


def _count_part(options: Options, part: int) -> PartStats:
    stats = PartStats()
    with parts.open_part(options, part) as opened:
        statuses = None
        if opened.pictures is not None:
            statuses = pq.read_table(
                opened.pictures.sidecar, columns=["status", "length"], read_dictionary=["status"], memory_map=False
            )
        for start, rows, size in _row_groups(opened.index, options):
            keep = options.filters.mask(rows)
            _count_rows(stats, rows, keep, size)
            stats.excluded += int(options.filters.excluded(rows).sum())
            if statuses is not None:
                _count_pictures(stats, rows, keep, statuses.slice(start, rows.num_rows))
    return stats


def _row_groups(index: IndexPart, options: Options) -> Iterator[tuple[int, pa.Table, int]]:
    columns = list(dict.fromkeys((*_COLUMNS, *options.filters.columns)))
    for (start, stop), size in zip(index.row_groups, index.row_group_bytes, strict=True):
        yield start, index.read(start, stop, columns), size


def _count_rows(stats: PartStats, rows: pa.Table, keep: Mask, size: int) -> None:
    faces = pa.concat_arrays(rows["faces"].chunks) if rows.num_rows else pa.array([], rows["faces"].type)
    lengths = pc.fill_null(pc.list_value_length(faces), 0).to_numpy(zero_copy_only=False)
    flat, kept_faces = faces.flatten(), np.repeat(keep, lengths)
    share = keep.mean() if len(keep) else 0.0
    stats.samples.add(Kept(len(keep), int(keep.sum())))
    stats.faces.add(Kept(len(flat), int(kept_faces.sum())))
    stats.index_bytes.add(Kept(size, size * share))
    stats.spreads["faces a picture"].count(_floats(rows["n_faces"]), keep)
    stats.spreads["face size"].count(np.minimum(*box_sides(flat)), kept_faces)
    stats.spreads["score"].count(_floats(flat.field("score")), kept_faces)
    stats.spreads["picture size"].count(np.minimum(_floats(rows["width"]), _floats(rows["height"])), keep)


def _count_pictures(stats: PartStats, rows: pa.Table, keep: Mask, statuses: pa.Table) -> None:
    status = statuses["status"].combine_chunks().cast(pa.string())
    lengths = _floats(statuses["length"])
    usable = _mask(pc.equal(status, reasons.OK))
    asked = ~_mask(pc.is_in(status, value_set=pa.array([reasons.FILTERED, reasons.NOT_DOWNLOADED]))) & keep
    stats.pictures.add(Kept(int(usable.sum()), int((usable & keep).sum())))
    stats.picture_bytes.add(Kept(float(np.nansum(lengths[usable])), float(np.nansum(lengths[usable & keep]))))
    stats.asked += int(asked.sum())
    stats.usable += int((asked & usable).sum())
    stats.reasons.update(_counted(status.filter(pa.array(asked & ~usable))))
    hosts = hosts_of(rows["url"])
    stats.hosts.update(_counted(hosts.filter(pa.array(asked))))
    stats.usable_hosts.update(_counted(hosts.filter(pa.array(asked & usable))))


def hosts_of(urls: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Give the host of each address, string[n]: in lower case, "(no host)" where there is none; as `urls.host_of`."""
    joined = pa.concat_arrays(urls.chunks) if isinstance(urls, pa.ChunkedArray) else urls
    found = pc.struct_field(pc.extract_regex(joined, _HOST), "host")
    plain = pc.utf8_rtrim(pc.utf8_lower(pc.utf8_trim(found, "[]")), ".")
    return pc.if_else(pc.fill_null(pc.equal(plain, ""), True), "(no host)", plain)


def _counted(values: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(values)
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def _floats(column: pa.ChunkedArray | pa.Array) -> Array:
    """Convert a column to float64[n], or float32[n] if it is of float32, with NaN where null."""
    kind = pa.float32() if column.type == pa.float32() else pa.float64()
    return np.asarray(pc.cast(column, kind).to_numpy(zero_copy_only=False))


def _mask(column: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)
