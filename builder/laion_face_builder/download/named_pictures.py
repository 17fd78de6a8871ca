"""Find the rows of a part whose pictures were taken down, by what their bytes are; nothing is changed.

A picture is known by the SHA-256s of what its host gave and of what is kept of it. MD5s stand nowhere: where a list has
some, every picture of the part is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder.download.numbering import Numbering
from laion_face_builder.download.plan import Mask, PartFiles, Rows
from laion_face_builder.download.shard_files import ShardFiles, pictures_in, whole_members
from laion_face_builder.download.taken_down import all_shards
from laion_face_builder.errors import BadFile
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import opened, rows_in
from laion_face_builder.sources import data_store

_BY_ROW = ("sample_id", "url")
_BY_HASH = ("sha256", "fetched_sha256")


def pictures_named(data: DataDir, part: int, removed: Removed) -> Mask | None:
    """Tell which rows of a part are taken down by what is known of their pictures; None if nothing was downloaded.

    Rows that an earlier call of `take_pictures_out` has noted are among them, as long as the index has them.

    Returns:
        bool[n] of the n rows of the index. Of a part without an index in DATA_DIR (it lies elsewhere): of all rows that
        its download knows, those too that are named by id, address or host.
    """
    with data_store.at_work(data) as here:
        files = PartFiles(here, part)
        has_index = data_store.has(here, here.index(part))
        if not data_store.brought(here, files.plan):
            return _adopted_named(here, part, removed) if has_index else None
        rows = _rows_of_index(here, part) if has_index else rows_in(files.plan)
        numbering = Numbering.of(files, rows)
        found = [numbering.gone.rows]
        for number, shard in all_shards(files):
            found += _named_in(files, number, shard, removed, by_row=not has_index)
        named = np.asarray(np.isin(numbering.of_index, np.concatenate(found)))
        adopted = _adopted_named(here, part, removed) if has_index else None
        return named if adopted is None else named | adopted


def _rows_of_index(data: DataDir, part: int) -> int:
    with data_store.opened(data, data.index(part)) as source, opened(source, data.index(part)) as file:
        return int(file.metadata.num_rows)


def _named_in(files: PartFiles, number: int, shard: ShardFiles, removed: Removed, *, by_row: bool) -> Iterator[Rows]:
    """Yield the download rows of a shard that are named; nothing of files that cannot be read."""
    checked = files.checked_tar(number, shard.number)
    for path, name in ((shard.parquet, "row"), (checked, "id")):
        if not data_store.brought(files.data, path):
            continue
        try:
            table = _columns_of(path, (name, *_BY_HASH, *(_BY_ROW if by_row else ())))
        except BadFile:
            continue  # a shard that is not whole goes as a whole, should it have to
        named = hashes_named(table, removed)
        if by_row and "sample_id" in table.column_names:
            named |= removed.mask(table)
        yield table[name].to_numpy()[named]
    if removed.md5s and data_store.brought(files.data, shard.tar):
        yield from _named_by_bytes(shard, removed)


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


def _named_by_bytes(shard: ShardFiles, removed: Removed) -> Iterator[Rows]:
    try:
        table = _columns_of(shard.parquet, ("key", "row"))
    except (BadFile, OSError):
        return
    rows = dict(zip(table["key"].to_pylist(), table["row"].to_numpy(), strict=True))
    with shard.tar.open("rb") as tar:
        for key, member in pictures_in(whole_members(shard.tar)[0]).items():
            if removed.names_picture(os.pread(tar.fileno(), member.length, member.offset), ()) and key in rows:
                yield np.array([rows[key]], np.int64)


def adopted_sidecars(data: DataDir, part: int) -> list[Path]:
    """List the sidecars of other people's folders, for one part."""
    return sorted((data.root / "adopted").glob(f"*/{data.sidecar(part).name}"))


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
