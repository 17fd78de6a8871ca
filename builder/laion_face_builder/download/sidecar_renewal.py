"""Write the sidecar of a part again from the shards that are there, once rows have left them or the index.

An index that lies elsewhere loses rows when its owner takes them down. The pictures of the others are where they were,
and the sidecar speaks of the index's rows: it is made again, by the rows' sample ids, before anything is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from laion_face_builder.download.numbering import Numbering
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.shard_files import ShardFiles, shards_in
from laion_face_builder.download.sidecar import (
    CheckedTar,
    is_for,
    sidecar_is_of,
    sidecar_table,
    write_sidecar,
)
from laion_face_builder.errors import BadFile
from laion_face_builder.files import Fingerprint, digest, locked, read_fingerprint
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import as_made, lost_by
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import rows_in, table_of
from laion_face_builder.sources import data_store

#: What a sidecar's fingerprint says of its tars and its index, which change.
_CHANGING = ("pictures", "removed", "lacks", "lost")


def all_shards(files: PartFiles) -> Iterator[tuple[int, ShardFiles]]:
    """Yield each shard that anything lies of, with its round; in the order of rounds and shards."""
    for number in range(files.rounds_started() + 1):
        folder = files.tars(number)
        there = [path for path in data_store.below(files.data, folder) if path.parent == folder]
        for shard in shards_in(there):
            yield number, ShardFiles(folder, shard)


def checked_of(files: PartFiles, number: int, shard: ShardFiles) -> Fingerprint | None:
    """Return the fingerprint of a shard's rows of the sidecar; None if there are none that speak of its tar."""
    checked, data = files.checked_tar(number, shard.number), files.data
    if not data_store.brought(data, shard.stats) or not data_store.brought(data, checked):
        return None
    try:
        found = read_fingerprint(checked) or {}
    except BadFile:
        return None
    is_of_it = (found.get("stats"), found.get("tar_bytes")) == (shard.stats_digest(), data_store.size(data, shard.tar))
    return found if is_of_it else None


def renew_sidecar(files: PartFiles, numbering: Numbering | None, lost: str | None) -> None:
    """Write a part's sidecar again, if there is one, as its tars now are; one that cannot be made is removed.

    Args:
        numbering: of the index that it is for; None if that is the same as before.
        lost: what has left that index, see `removals.lost_by`.
    """
    path = files.data.sidecar(files.part)
    if not data_store.brought(files.data, path):
        return
    shards = [(number, shard) for number, shard in all_shards(files) if checked_of(files, number, shard)]
    tars = [
        CheckedTar(files.tar_name(number, shard.number), files.checked_tar(number, shard.number))
        for number, shard in shards
    ]
    try:
        known = read_fingerprint(path) or {}
        if numbering is None:
            numbering, lost = Numbering.of_sidecar(files), known.get("lost")
        if sidecar_is_of(path, tars, numbering, lost):
            return
        plan = table_of(files.plan, ["status"])["status"]
    except BadFile as error:
        logger.warning("%s; removed: `laion-face download` makes it again, and fetches nothing", error)
        path.unlink(missing_ok=True)
        data_store.remove_afar(files.data, path)
        return
    fingerprint = {name: value for name, value in known.items() if name not in _CHANGING}
    fingerprint |= numbering.stamp | ({"lost": lost} if lost else {})
    write_sidecar(path, sidecar_table(plan, numbering, tars), fingerprint, tars)
    data_store.send(files.data, path)


def fit_to_index(data: DataDir, part: int, index: IndexPart) -> None:
    """Make a part's sidecar fit an index that has lost rows since, or has more than the one that it was made for.

    Nothing is done without a sidecar, or if it is of another index altogether.

    Raises:
        StateConflict: the index has rows that were never downloaded. DiskError: the disk is full, or read-only.
    """
    path, lost = data.sidecar(part), lost_by(index.fingerprint)
    known = read_fingerprint(path)
    if known is None or known.get("index") != digest(as_made(index.fingerprint)):
        return
    if rows_in(path) == index.num_rows and is_for(known, lost):
        return
    files = PartFiles(data, part)
    with locked(data.images_fingerprint(part), f"part {part}: another process downloads it; waiting for that"):
        if files.plan.exists():
            logger.info("part %d: its index has other rows than before; the list of its pictures is made again", part)
            renew_sidecar(files, Numbering.of(files, index), lost)
