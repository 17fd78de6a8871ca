"""Count what is in the index, what a filter keeps of it, and what became of the pictures.

Counting goes by whole columns, never by a loop over faces. In memory are one row group at a time, and the status and
length columns of a part's sidecar.

The counters are those of `laion-face stats`: of everything and of what a filter keeps, in bins, by reason and by host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.download.copies import HASHES, Copies, hashes_of
from laion_face_builder.errors import OptionError
from laion_face_builder.examples import parts
from laion_face_builder.examples.placeholders import copies_of
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.filters import box_sides
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.options import Options
from laion_face_builder.parquet_files import table_of

Array = np.ndarray[Any, np.dtype[Any]]
#: The last bin of each is open, and so is the first where it starts at -inf.
EDGES: dict[str, tuple[float, ...]] = {
    "faces a picture": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    "face size": (-np.inf, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "score": (-np.inf, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
    "picture size": (-np.inf, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
}
#: Hosts are counted one by one within a part; of those before it, so many are kept, the others put together.
MOST_HOSTS = 10_000
OTHER_HOSTS = "(other hosts)"


@dataclass
class Kept:
    """A count of everything, and of what the filter keeps."""

    all: float = 0
    kept: float = 0

    def add(self, other: Kept) -> None:
        """Add both numbers of `other`."""
        self.all += other.all
        self.kept += other.kept

    @property
    def share(self) -> float:
        """Share of all that is kept, 0 to 1; 1 where there is nothing."""
        return self.kept / self.all if self.all else 1.0


@dataclass
class Spread:
    """How many values lie in each bin [edge, next edge), of everything and of what is kept; `unknown` are nulls."""

    edges: tuple[float, ...]
    all: Array
    kept: Array
    unknown: Kept = field(default_factory=Kept)

    @classmethod
    def empty(cls, name: str) -> Spread:
        """Make a spread with nothing counted yet, in the bins of `EDGES[name]`."""
        return cls.over(EDGES[name])

    @classmethod
    def over(cls, edges: tuple[float, ...]) -> Spread:
        """Make a spread with nothing counted yet, in bins that begin at these edges; the last is open."""
        return cls(edges, np.zeros(len(edges), np.int64), np.zeros(len(edges), np.int64))

    def count(self, values: Array, keep: Mask) -> None:
        """Count values, float[n], NaN where unknown; `keep` says which are kept. Edges are float32, as faces are."""
        known = ~np.isnan(values)
        bins = (np.searchsorted(np.asarray(self.edges, np.float32), values, side="right") - 1).clip(0)
        self.all += np.bincount(bins[known], minlength=len(self.edges))
        self.kept += np.bincount(bins[known & keep], minlength=len(self.edges))
        self.unknown.add(Kept(int((~known).sum()), int((~known & keep).sum())))

    @property
    def bins(self) -> list[tuple[str, int, int]]:
        """Label, all and kept of each bin, from the first to the last that is not empty; unknown ones last."""
        bins = list(zip(self._labels, self.all.tolist(), self.kept.tolist(), strict=True))
        used = np.flatnonzero(self.all)
        shown = bins[used[0] : used[-1] + 1] if len(used) else []
        return [*shown, ("unknown", int(self.unknown.all), int(self.unknown.kept))] if self.unknown.all else shown

    @property
    def _labels(self) -> list[str]:
        """Names of the bins, such as "16 to 24", "512 and more"; single numbers where bins hold one."""
        named = []
        for low, high in zip(self.edges, (*self.edges[1:], None), strict=True):
            if high is None:
                named.append(f"{low:g} and more")
            elif low == -np.inf:
                named.append(f"below {high:g}")
            else:
                named.append(f"{low:g}" if high - low == 1 and low < 10 else f"{low:g} to {high:g}")
        return named


@dataclass
class PartStats:
    """The counts of one part, or of several added up.

    Attributes:
        samples, faces: rows of the index and all faces in them; of a sample that is kept all faces are.
        index_bytes: of the index, compressed; a row has its row group's average.
        dropped: samples that each filter by itself would leave out, by its name.
        excluded: samples that the exclusion list names by id, address or host, whatever the other filters say of them.
        asked, usable: kept samples whose picture was asked for, and those whose picture can be used.
        picture_bytes: of the usable pictures, of everything and of what is kept.
        reasons: why kept samples have no picture.
        hosts, usable_hosts: `asked` and `usable` by host.
        spreads: by the names in `EDGES`.
    """

    samples: Kept = field(default_factory=Kept)
    faces: Kept = field(default_factory=Kept)
    index_bytes: Kept = field(default_factory=Kept)
    pictures: Kept = field(default_factory=Kept)
    picture_bytes: Kept = field(default_factory=Kept)
    excluded: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    usable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    usable_hosts: Counter[str] = field(default_factory=Counter)
    spreads: dict[str, Spread] = field(default_factory=lambda: {name: Spread.empty(name) for name in EDGES})

    def add(self, other: PartStats) -> None:
        """Add all counts of `other`."""
        for name in ("samples", "faces", "index_bytes", "pictures", "picture_bytes"):
            getattr(self, name).add(getattr(other, name))
        self.excluded += other.excluded
        self.asked += other.asked
        self.usable += other.usable
        for name in ("dropped", "reasons", "hosts", "usable_hosts"):
            getattr(self, name).update(getattr(other, name))
        for name, spread in self.spreads.items():
            spread.all += other.spreads[name].all
            spread.kept += other.spreads[name].kept
            spread.unknown.add(other.spreads[name].unknown)

    def keep_hosts(self, most: int = MOST_HOSTS) -> None:
        """Merge all hosts but the `most` with the most pictures into one entry."""
        kept = {host for host, _ in self.hosts.most_common(most)} | {OTHER_HOSTS}
        for counts in (self.hosts, self.usable_hosts):
            for host in [host for host in counts if host not in kept]:
                counts[OTHER_HOSTS] += counts.pop(host)


_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/:?#@\[]*)"
_COLUMNS = ("url", "width", "height", "n_faces", "faces")


@dataclass(frozen=True)
class Stats:
    """Everything that was counted: in total, `asked` and `usable` of each part that has pictures, and placeholders."""

    options: Options
    total: PartStats
    by_part: dict[int, tuple[int, int]]
    copies: Copies = field(default_factory=dict)

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
    copies = copies_of(options)
    total, by_part = PartStats(), {}
    with progress.bar("counting", len(options.parts)) as bar:
        for part in options.parts:
            found = _count_part(options, part)
            if found.asked:
                by_part[part] = found.asked, found.usable
            total.add(found)
            total.keep_hosts()
            bar.update()
    return Stats(options, total, by_part, copies)


def refuse_download(options: Options) -> None:
    """Raise OptionError for images="download"."""
    if options.images == "download":
        raise OptionError("images='download': run `laion-face download` first; stats reads what is there")


def _count_part(options: Options, part: int) -> PartStats:
    stats, filters = PartStats(), options.filters.alone()
    with parts.open_part(options, part) as opened:
        statuses = None
        if opened.pictures is not None:
            columns = ["status", "length"]
            if options.placeholders:
                columns += [name for name in HASHES if name in pq.read_schema(opened.pictures.sidecar).names]
            statuses = table_of(opened.pictures.sidecar, columns, read_dictionary=["status"])
        for start, rows, size in _row_groups(opened.index, options):
            keep = options.filters.mask(rows)
            _count_rows(stats, rows, keep, size)
            stats.excluded += int(options.filters.excluded(rows).sum())
            for name, alone in filters.items():
                stats.dropped[name] += int((~alone.mask(rows)).sum())
            if statuses is not None:
                _count_pictures(stats, rows, keep, statuses.slice(start, rows.num_rows), options.placeholders)
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


def _count_pictures(
    stats: PartStats, rows: pa.Table, keep: Mask, statuses: pa.Table, placeholders: frozenset[str]
) -> None:
    status = statuses["status"].combine_chunks().cast(pa.string())
    if placeholders:
        is_one = pc.is_in(hashes_of(statuses), value_set=pa.array(sorted(placeholders)))
        status = pc.if_else(is_one, Reason.TOO_MANY_COPIES.value, status)
    lengths = _floats(statuses["length"])
    usable = _mask(pc.equal(status, Reason.OK))
    asked = ~_mask(pc.is_in(status, value_set=pa.array([Reason.FILTERED, Reason.NOT_DOWNLOADED]))) & keep
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
