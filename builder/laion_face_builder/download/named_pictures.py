"""Find the rows of a part whose pictures were taken down, by what their bytes are; nothing is changed.

A picture is known by the SHA-256s of what its host gave and of what is kept of it. MD5s stand nowhere: where a list has
some, every picture of the part is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from laion_face_builder.download.numbering import Numbering, ids_of_download
from laion_face_builder.download.plan import Mask, PartFiles, opened_index
from laion_face_builder.download.shard_files import ShardFiles, pictures_in, whole_members
from laion_face_builder.download.sidecar_renewal import all_shards
from laion_face_builder.errors import BadFile
from laion_face_builder.index.removed import Names, Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import opened
from laion_face_builder.sources import data_store

_BY_ROW = ("sample_id", "url")
_BY_HASH = ("sha256", "fetched_sha256")


def pictures_named(data: DataDir, part: int, removed: Removed) -> Mask | None:
    """Tell which rows of a part's index are taken down by what is known of their pictures; None if nothing is known.

    Rows that an earlier call of `take_pictures_out` has noted are among them, as long as the index has them.

    Returns:
        bool[n] of the n rows of the index in DATA_DIR; None without one, see `downloads_named`.
    """
    with data_store.at_work(data) as here:
        files = PartFiles(here, part)
        if not data_store.has(here, here.index(part)):
            return None
        if not data_store.brought(here, files.plan):
            return _adopted_named(here, part, removed)
        with opened_index(here, part) as index:
            numbering = Numbering.of(files, index)
        found = [numbering.gone]
        for number, shard in all_shards(files):
            found += (rows["row"].to_numpy() for rows in _named_in(files, number, shard, removed))
        named = np.asarray(np.isin(numbering.of_index, np.concatenate(found)))
        adopted = _adopted_named(here, part, removed)
        return named if adopted is None else named | adopted


@dataclass(frozen=True)
class NamedDownloads:
    """What is named of a part's download, told without its index.

    Attributes:
        gone: bool[total], which of its rows; those that were taken down before are among them.
        ids: int64[m], the sample ids of the others.
        urls: of those of them that were asked for.
    """

    gone: Mask
    ids: np.ndarray[Any, np.dtype[np.int64]]
    urls: tuple[str, ...]


def downloads_named(data: DataDir, part: int, removed: Removed, names: Names) -> NamedDownloads | None:
    """Find what is taken down of a part whose index lies elsewhere, by what its download says; None if there is none.

    Of a sample that was never asked for it says the id, and not the address.

    Args:
        removed: what names pictures.
        names: names samples by their ids and addresses.

    Raises:
        StateConflict: an earlier version wrote it, and it has not come to its end. BadFile: the plan is damaged.
    """
    files = PartFiles(data, part)
    if not files.plan.exists():
        return None
    ids = ids_of_download(files)
    no_urls = pa.nulls(len(ids), pa.string())
    gone = names(pa.table({"sample_id": ids, "url": pa.chunked_array([no_urls])}))
    urls: set[str] = set()
    for number, shard in all_shards(files):
        for rows in _named_in(files, number, shard, removed, names):
            gone[rows["row"].to_numpy()] = True
            urls.update(filter(None, rows["url"].to_pylist()))
    known = ids.is_valid().to_numpy(zero_copy_only=False)
    return NamedDownloads(gone | ~known, ids.filter(pa.array(gone & known)).to_numpy(), tuple(sorted(urls)))


def _rows_of_index(data: DataDir, part: int) -> int:
    with data_store.opened(data, data.index(part)) as source, opened(source, data.index(part)) as file:
        return int(file.metadata.num_rows)


def _named_in(
    files: PartFiles, number: int, shard: ShardFiles, removed: Removed, names: Names | None = None
) -> Iterator[pa.Table]:
    """Yield `row` and `url`, null where it is not read, of a shard's rows that are named; none of broken files.

    Args:
        names: names rows by their ids and addresses; None if only hashes do.
    """
    checked = files.checked_tar(number, shard.number)
    for path, name in ((shard.parquet, "row"), (checked, "id")):
        if not data_store.brought(files.data, path):
            continue
        try:
            table = _columns_of(path, (name, *_BY_HASH, *(_BY_ROW if names else ())))
        except BadFile:
            continue  # a shard that is not whole goes as a whole, should it have to
        named = hashes_named(table, removed)
        if names is not None and {*_BY_ROW}.issubset(table.column_names):
            named |= names(table.select(_BY_ROW))
        urls = table["url"] if "url" in table.column_names else pa.nulls(table.num_rows, pa.string())
        yield pa.table({"row": table[name], "url": urls}).filter(pa.array(named))
    if removed.md5s and data_store.brought(files.data, shard.tar):
        rows = np.array([*_named_by_bytes(shard, removed)], np.int64)
        yield pa.table({"row": rows, "url": pa.nulls(len(rows), pa.string())})


def _columns_of(path: Path, names: tuple[str, ...]) -> pa.Table:
    """Read those of the columns that a file has."""
    with opened(path) as file:
        return file.read(columns=[name for name in names if name in file.schema_arrow.names])


def hashes_named(table: pa.Table, removed: Removed) -> Mask:
    """Tell, bool[n], which rows have a SHA-256 that is named, in whatever column."""
    named = np.zeros(table.num_rows, bool)
    for name in _BY_HASH if removed.sha256s else ():
        if name in table.column_names:
            named |= np.fromiter(map(removed.names_sha256, table[name].to_pylist()), bool, table.num_rows)
    return named


def _named_by_bytes(shard: ShardFiles, removed: Removed) -> Iterator[int]:
    try:
        table = _columns_of(shard.parquet, ("key", "row"))
    except (BadFile, OSError):
        return
    rows = dict(zip(table["key"].to_pylist(), table["row"].to_numpy(), strict=True))
    with shard.tar.open("rb") as tar:
        for key, member in pictures_in(whole_members(shard.tar)[0]).items():
            if removed.names_picture(os.pread(tar.fileno(), member.length, member.offset), ()) and key in rows:
                yield rows[key]


def adopted_sidecars(data: DataDir, part: int) -> list[Path]:
    """List the sidecars of other people's folders, for one part."""
    return sorted((data.root / "adopted").glob(f"*/{data.sidecar(part).name}"))


def adopted_ids_named(data: DataDir, part: int, removed: Removed) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the sample ids, int64[m], whose pictures in other people's folders are named, where no index says them."""
    found = [np.zeros(0, np.int64)]
    for path in adopted_sidecars(data, part) if removed.sha256s else ():
        with suppress(BadFile):
            table = _columns_of(path, ("sample_id", *_BY_HASH))
            found.append(table["sample_id"].filter(pa.array(hashes_named(table, removed))).drop_null().to_numpy())
    return np.concatenate(found)


def _adopted_named(data: DataDir, part: int, removed: Removed) -> Mask | None:
    """Tell which rows of the index are named by the pictures that other people's folders have of them."""
    rows, found = _rows_of_index(data, part), None
    for path in adopted_sidecars(data, part):
        try:
            table = _columns_of(path, _BY_HASH)
        except BadFile:
            continue
        if table.num_rows == rows:  # else it was made for an earlier index
            named = hashes_named(table, removed)
            found = named if found is None else found | named
    return found
