"""Take rows out of the tables of a DATA_DIR: ids, faces, index and joined tables, and free upstream's own files.

Parts go through these steps; killed between any two of them, the same call does the rest:

1. the rows of all parts that are named are noted in removed.json, by the hashes of their ids;
2. their pictures leave the tars, which still know them by their rows in the index;
3. tables that are joined with the part are freed, since their rows are the index's;
4. proof and index are written again, then ids and faces: these alone could no longer say by address who is named.

Where the index lies elsewhere (`index=`), it is what was downloaded that says which rows are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from laion_face_builder.download.named_pictures import (
    NamedDownloads,
    adopted_ids_named,
    adopted_sidecars,
    downloads_named,
    pictures_named,
)
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.files import Fingerprint, digest, locked, read_fingerprint, remove_partials
from laion_face_builder.index.exclusion import Exclusion, Mask
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import Removals, noted, without_stamp
from laion_face_builder.index.removed import Names, Removed, hashes_of_ids
from laion_face_builder.index.side_table import side_tables
from laion_face_builder.index.staged import staging_folders
from laion_face_builder.index.withheld import take_ids_out
from laion_face_builder.index.writer import kept_rows, rewrite_proof, write_kept
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.parquet_files import table_of
from laion_face_builder.removal.removal_request import Counts
from laion_face_builder.sources import data_store


def parts_with_rows(data: DataDir) -> list[int]:
    """List the parts of which there is a table, a table that is joined, a download, or a folder that was adopted."""
    joined = {part for parts in side_tables(data).values() for part in parts}
    return [part for part in ALL_PARTS if part in joined or any(path.exists() for path in _places(data, part))]


@dataclass(frozen=True)
class NamedRows:
    """What is named in a part.

    Attributes:
        ids: int64[m], sample ids that are named in any of its tables.
        gone: bool[n], which rows of its index are; None without an index.
        urls: of these rows.
        downloaded: what of its download is, where the index lies elsewhere.
    """

    ids: np.ndarray
    gone: Mask | None
    urls: tuple[str, ...] = ()
    downloaded: NamedDownloads | None = None

    @property
    def counts(self) -> Counts:
        """How many ids and rows there are."""
        rows = 0 if self.gone is None else int(self.gone.sum())
        return Counts(ids=len(self.ids), rows=rows if self.downloaded is None else len(self.downloaded.ids))


class TakePicturesOut(Protocol):
    """Takes rows of a part out of all that was downloaded of it: bool[n], see `taken_down.take_pictures_out`."""

    def __call__(self, data: DataDir, part: int, gone: Mask, *, is_index_here: bool = True) -> Counts:
        """Do it; return what was taken out."""
        ...


def names_of(listed: Exclusion | None, before: Removals, removed: Removed) -> Names:
    """Return what names rows: the list as it was given, which is quick, or hashes of all that was ever listed.

    Args:
        listed: None if nothing is.
        before: what was asked for before. Where that is not finished, rows of it may still be there.
        removed: all that is taken down now.
    """
    return removed.mask if listed is None or before.pending is not None else listed.mask


def named_rows(data: DataDir, part: int, names: Names, removed: Removed) -> NamedRows:
    """Look through the tables of a part, and through what was downloaded of it.

    Args:
        removed: names pictures.

    Raises:
        BadFile: a table is damaged. StateConflict: as `named_pictures.downloads_named`.
    """
    found, gone, urls, downloaded = [np.zeros(0, np.int64)], None, list[str](), None
    if not data.index(part).exists():
        found.append(adopted_ids_named(data, part, removed))
        downloaded = downloads_named(data, part, removed, names)
        if downloaded is not None:
            found.append(downloaded.ids)
            urls += downloaded.urls
    else:
        pictures = pictures_named(data, part, removed) if removed.pictures else None
        with IndexPart.open(data.index(part)) as index:
            masks = [np.zeros(0, bool)]
            for start, stop in index.row_groups:
                rows = index.read(start, stop, ["sample_id", "url"])
                named = names(rows) if pictures is None else names(rows) | pictures[start:stop]
                masks.append(named)
                found.append(rows["sample_id"].to_numpy()[named])
                urls += filter(None, rows["url"].filter(pa.array(named)).to_pylist())
        gone = np.concatenate(masks)
    for path in (data.ids(part), data.faces(part)):
        if path.exists():
            table = table_of(path, ["sample_id"])
            found.append(table["sample_id"].to_numpy()[names(table)])
    return NamedRows(np.unique(np.concatenate(found)), gone, tuple(urls), downloaded)


def note_rows(data: DataDir, named: Mapping[int, NamedRows]) -> None:
    """Note what is named, of all parts at once: the file that it is noted in may have millions of hashes."""
    noted(data, {part: hashes_of_ids(found.ids.tolist()) for part, found in named.items() if len(found.ids)})


def take_rows_out(data: DataDir, part: int, named: NamedRows, take_pictures_out: TakePicturesOut) -> Counts:
    """Take what is named, and noted, out of a part; the caller holds its lock. One that has none of it is left alone.

    Returns:
        What was taken out.
    """
    counts = Counts()
    if named.downloaded is not None and named.downloaded.gone.any():
        counts += take_pictures_out(data, part, named.downloaded.gone, is_index_here=False)
        counts["rows"] = len(named.downloaded.ids)
    ours = read_fingerprint(data.index(part))
    if Removals.of(data).pending is not None:
        counts["joined tables"] += _free_joined(data, part, besides=ours)
    wanted = None if ours is None else {**without_stamp(ours), **Removals.of(data).stamp(part)}
    if wanted is not None and named.gone is not None and (named.gone.any() or ours != wanted):
        if named.gone.any():
            counts += take_pictures_out(data, part, named.gone)
        counts["joined tables"] += _free_joined(data, part)
        _rewrite_index(data, part, named, wanted)
        counts["rows"] = int(named.gone.sum())
    if len(named.ids):
        of_ids, of_faces = take_ids_out(data, part, named.ids)
        counts += Counts(ids=of_ids, faces=of_faces)
    return counts


def _rewrite_index(data: DataDir, part: int, named: NamedRows, wanted: Fingerprint) -> None:
    path, gone = data.index(part), named.gone
    assert gone is not None, "there is an index"  # noqa: S101 - says it to the type checker
    remove_partials(path.parent, path.name)
    ids = table_of(data.ids(part), ["sample_id"])["sample_id"].to_numpy() if data.ids(part).exists() else named.ids
    rewrite_proof(path, int(gone.sum()), int(np.isin(named.ids, ids).sum()), wanted)
    with IndexPart.open(path) as index:
        write_kept(path, kept_rows(index, ~gone), int((~gone).sum()), wanted)


def _tables(data: DataDir, part: int) -> tuple[Path, ...]:
    return data.ids(part), data.faces(part), data.index(part)


def _places(data: DataDir, part: int) -> tuple[Path, ...]:
    return *_tables(data, part), PartFiles(data, part).plan, *adopted_sidecars(data, part)


def _free_joined(data: DataDir, part: int, besides: Fingerprint | None = None) -> int:
    """Remove what is joined with a part: it is joined anew when it is next asked for; return how many tables had it.

    Args:
        besides: keep what is joined with this index. What lies beside one that is elsewhere has its rows, and says of
            none of them which it is.
    """
    count, kept = 0, None if besides is None else digest(besides)
    for folder in sorted(path for path in data.joined("").glob("*") if path.is_dir()):
        with locked(folder):
            table = folder / f"part-{part:05d}.parquet"
            if table.exists() and (kept is None or (read_fingerprint(table) or {}).get("index") != kept):
                count += 1
                table.unlink()
            remove_partials(folder)
    return count


def free_sources(data: DataDir) -> int:
    """Remove copies of upstream's files and rows on their way to the index, which have rows that were taken down.

    What the files contained is still known. The caller holds the lock on `staging`.

    Returns:
        The bytes that are freed.
    """
    size = 0
    for path in sorted(data.sources.rglob("*")):
        if path.is_file() and (not path.name.startswith(".") or path.suffix in (".incomplete", ".partial")):
            size += path.stat().st_size
            path.unlink()
    for folder in staging_folders(data):
        size += sum(data_store.below(data, folder).values())
        data_store.remove(data, folder)
    return size
