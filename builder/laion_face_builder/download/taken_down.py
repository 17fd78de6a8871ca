"""Take samples out of what was downloaded of a part: tars, tables, counts and the sidecar; whatever stays is kept.

Each step leaves files with which a download can go on, and is done again by whoever is called again with the same: the
plan forgets the rows' samples first (`numbering`), then every shard is written once more that still says anything of
them (`rewriting`), then the sidecar. An index that lies with them may be rewritten only after that, since its rows say
what is to go; one that lies elsewhere is never read.

A shard that is not whole, as a killed download leaves them, goes as a whole: the next download makes it again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.download.numbering import Numbering, forget_samples
from laion_face_builder.download.plan import Mask, PartFiles, Rows, opened_index
from laion_face_builder.download.rewriting import (
    copy_tar,
    finish_rewriting,
    write_checked,
    write_parquet,
    written_again,
)
from laion_face_builder.download.shard_files import (
    ShardFiles,
    pictures_in,
    read_members,
    remove_half_written,
    require_whole,
)
from laion_face_builder.download.sidecar_renewal import all_shards, checked_of, renew_sidecar
from laion_face_builder.download.workers import Workers
from laion_face_builder.errors import BadFile
from laion_face_builder.files import disk_errors, locked, remove_partials
from laion_face_builder.images.reasons import Reason, short_name
from laion_face_builder.index.removals import Removals, lost_by
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import table_of
from laion_face_builder.sources import data_store

#: What a shard's parquet still says of a sample that was taken down.
_KEPT = ("row", "key", "status", "error_message")


@dataclass(frozen=True)
class PicturesTaken:
    """What was taken out of a part's pictures; additive.

    Attributes:
        samples: rows of tars' tables that were emptied.
        pictures: how many of them had a picture.
        bytes: of these pictures.
        tars: how many tars were written again.
        lost: shards that were not whole, and went.
    """

    samples: int = 0
    pictures: int = 0
    bytes: int = 0
    tars: int = 0
    lost: int = 0

    def __add__(self, other: PicturesTaken) -> PicturesTaken:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return PicturesTaken(*(one + another for one, another in pairs))


def take_pictures_out(data: DataDir, part: int, gone: Mask, *, is_index_here: bool = True) -> PicturesTaken:
    """Take rows out of all that was downloaded of a part, before they leave its index; nothing if nothing was.

    Killed anywhere, the same call does the rest, also once it had ended and the index is still as it was.

    Args:
        gone: bool[n]: which rows of the index, as it is now, are taken down; of an index that lies elsewhere, and may
            keep them, which rows of the download.

    Raises:
        StateConflict: the pictures are of another index. DownloadError: they are being downloaded.
        DiskError: the disk is full, or read-only.
    """
    with _opened(data, part) as files:
        if files is None:
            return PicturesTaken()
        with disk_errors(files.data.tars(part)):
            of_index, lost, rows = None, None, np.flatnonzero(gone)
            if is_index_here:
                of_index, lost = _index_here(files)
                of_index, rows = of_index[~gone], of_index[gone]
            ids = forget_samples(files, rows)
            rows_gone = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))
            if not len(rows_gone):
                return PicturesTaken()
            taken = PicturesTaken()
            for number, shard in all_shards(files):
                taken += _StoredShard(files, number, shard).without(rows_gone)
            renew_sidecar(files, None if of_index is None else Numbering(of_index, ids), lost)
            if gone.any():
                _forget_copies(files.data)
    if taken.samples:
        logger.info("part %d: %d samples out of %d tars", part, taken.samples, taken.tars)
    return taken


@contextmanager
def nobody_downloads(data: DataDir, part: int) -> Iterator[None]:
    """Wait until nobody downloads a part, and keep it so: what is on its way has no hash that could be looked up."""
    with data_store.at_work(data) as here, ExitStack() as stack:
        if here.images_fingerprint(part).parent.exists():  # Who has not come that far finds out what is taken down.
            stack.enter_context(_alone_at(PartFiles(here, part)))
        yield


def _forget_copies(data: DataDir) -> None:
    """Remove what `copies` keeps: it names pictures by their SHA-256, and is made again when it is asked for."""
    for counted in data_store.below(data, data.root / "copies"):
        counted.unlink(missing_ok=True)
        data_store.remove_afar(data, counted)


@contextmanager
def _opened(data: DataDir, part: int) -> Iterator[PartFiles | None]:
    """Yield the files of a part, nobody else at work and all of earlier runs finished; None without a download."""
    with data_store.at_work(data) as here:
        files = PartFiles(here, part)
        if not data_store.brought(here, files.plan):
            yield None
            return
        with _alone_at(files):
            finish_rewriting(files)
            remove_partials(files.checked)
            remove_partials(here.tars(part).parent, f"{here.tars(part).name}.")
            for number in range(files.rounds_started() + 1):
                remove_half_written(files.tars(number))
                remove_partials(files.tars(number))
            yield files


@contextmanager
def _alone_at(files: PartFiles) -> Iterator[None]:
    waiting = (
        f"part {files.part}: another process downloads it; waiting for that. To go on now, interrupt the download, "
        "and start it again afterwards"
    )
    with locked(files.data.images_fingerprint(files.part), waiting), Workers[Any](0, lock=files.writers):
        yield


def _index_here(files: PartFiles) -> tuple[Rows, str | None]:
    """Return the download rows of the index in DATA_DIR, and what it will have lost, see `removals.lost_by`."""
    with opened_index(files.data, files.part) as index:
        stamp = Removals.of(files.data).stamp(files.part)
        return Numbering.of(files, index).of_index, lost_by({**index.fingerprint, **stamp}) if stamp else None


@dataclass(frozen=True)
class _StoredShard:
    """A shard that rows may have to be taken out of."""

    files: PartFiles
    round: int
    shard: ShardFiles

    def without(self, gone: Rows) -> PicturesTaken:
        """Write the shard once more if it says anything of these download rows; remove one that is not whole."""
        data = self.files.data
        try:
            for path in (self.shard.stats, self.shard.parquet):
                if not data_store.brought(data, path):
                    raise BadFile(path, found="nothing", expected="a file of the shard", way_out="Download it again.")
            marks = table_of(self.shard.parquet, ["row", "error_message"])
            said = marks["error_message"].cast(pa.string())
            is_told = pc.fill_null(pc.not_equal(said, Reason.TAKEN_DOWN.value), True).to_numpy()
            named = np.isin(marks["row"].to_numpy(), gone) & is_told
            return self._rewritten(named, gone) if named.any() else PicturesTaken()
        except BadFile as error:
            logger.warning("%s; the shard is removed, and the next download makes it again", error)
            return self._lost()

    def _lost(self) -> PicturesTaken:
        checked = self.files.checked_tar(self.round, self.shard.number)
        for path in (self.shard.stats, self.shard.parquet, self.shard.tar, checked):
            data_store.remove_afar(self.files.data, path)
            path.unlink(missing_ok=True)
        return PicturesTaken(lost=1)

    def _rewritten(self, named: Mask, gone: Rows) -> PicturesTaken:
        shard, data = self.shard, self.files.data
        if not data_store.brought(data, shard.tar):
            raise BadFile(shard.tar, found="nothing", expected="the shard's tar", way_out="Download it again.")
        table, members = table_of(shard.parquet), read_members(shard.tar)
        require_whole(shard, table.num_rows, members)
        keys = frozenset(table["key"].filter(pa.array(named)).to_pylist())
        pictures = [member for key, member in pictures_in(members).items() if key in keys]
        has_members = any(member.key in keys for member in members)
        checked = checked_of(self.files, self.round, shard)
        with written_again(self.files, shard) as made:
            moved = copy_tar(shard.tar, made.tar, keys) if has_members else None
            write_parquet(_emptied(table, named), made.parquet)
            stats = _recounted(json.loads(shard.stats.read_bytes()), table.filter(pa.array(named)))
            made.stats.write_text(json.dumps(stats, indent=4), encoding="utf-8")
            if checked is not None:
                tar = made.tar if has_members else shard.tar
                stamp = {**checked, "stats": made.stats_digest(), "tar_bytes": tar.stat().st_size}
                source = self.files.checked_tar(self.round, shard.number)
                write_checked(_unchecked(table_of(source), gone, moved), made.folder / source.name, stamp)
        self._send(has_members)
        return PicturesTaken(len(keys), len(pictures), sum(picture.length for picture in pictures), int(has_members))

    def _send(self, has_members: bool) -> None:
        """Send what changed to the address, if there is one: the stats go first, and come last."""
        data, shard = self.files.data, self.shard
        if data.address is None:
            return
        data_store.remove_afar(data, shard.stats)
        checked = self.files.checked_tar(self.round, shard.number)
        for path in (*([shard.tar] if has_members else []), shard.parquet, *([checked] if checked.exists() else [])):
            data_store.send(data, path)
        data_store.send(data, shard.stats)
        shard.tar.unlink()  # whatever room there is here, it is not that of all tars


def _emptied(table: pa.Table, named: Mask) -> pa.Table:
    """Return a shard's parquet in which these rows say nothing but that they were taken down."""
    emptied = _nulled(table, named)
    said = {"status": "failed_to_download", "error_message": Reason.TAKEN_DOWN.value}
    for name in filter(table.column_names.__contains__, _KEPT):
        column = table[name]
        if name in said:
            column = pc.if_else(pa.array(named), said[name], column.cast(pa.string()))
        emptied = emptied.set_column(emptied.schema.get_field_index(name), name, column)
    return emptied


def _nulled(table: pa.Table, named: Mask) -> pa.Table:
    return table.take(pa.array(np.arange(table.num_rows), mask=named))


def _recounted(stats: dict[str, Any], named: pa.Table) -> dict[str, Any]:
    """Return a shard's counts once these rows of its parquet are failures."""
    messages = Counter(stats.get("status_dict", {}))
    counts = Counter({name: stats.get(name, 0) for name in ("successes", "failed_to_download", "failed_to_resize")})
    for status, said in zip(named["status"].to_pylist(), named["error_message"].to_pylist(), strict=True):
        counts["successes" if status == "success" else status] -= 1
        messages["success" if status == "success" else said if said in messages else short_name(said)] -= 1
    counts["failed_to_download"] += named.num_rows
    messages[Reason.TAKEN_DOWN] += named.num_rows
    return stats | dict(counts) | {"status_dict": {name: count for name, count in messages.items() if count > 0}}


def _unchecked(checked: pa.Table, gone: Rows, moved: dict[int, int] | None) -> pa.Table:
    """Return a shard's rows of the sidecar without what they say of download rows that are gone.

    Args:
        moved: where each member lies now, by where it lay; None if the tar is as it was.
    """
    is_gone = np.isin(checked["id"].to_numpy(), gone)
    said = {"status": Reason.TAKEN_DOWN.value, "detail": ""}
    emptied = _nulled(checked, is_gone).set_column(checked.schema.get_field_index("id"), "id", checked["id"])
    for name, text in said.items():
        column = pc.if_else(pa.array(is_gone), text, checked[name])
        emptied = emptied.set_column(emptied.schema.get_field_index(name), name, column)
    if moved is None:
        return emptied
    offsets = [None if offset is None else moved[offset] for offset in emptied["offset"].to_pylist()]
    return emptied.set_column(emptied.schema.get_field_index("offset"), "offset", pa.array(offsets, pa.int64()))
