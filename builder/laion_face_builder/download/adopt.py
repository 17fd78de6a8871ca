"""Adopt folders that somebody else's img2dataset made, such as the original scripts' `laion_face_data/split_000NN/`.

DATA_DIR/adopted/
  tars/DIGEST.parquet              our pass over one tar, named by the tar's name, size and ends
  DIGEST/part-000NN.parquet        the sidecar: those passes joined by SAMPLE_ID with the index

The keys in such tars are row positions of whatever list was downloaded, so they are never joined on: the sample id is
in each sample's `.json` and in the `.parquet` beside the tar. Nothing is written into the folder itself. Resized and
re-encoded pictures are welcome: sizes come from the bytes, and the size before resizing from img2dataset's
`original_width` and `original_height`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from laion_face_builder import progress
from laion_face_builder.download.foreign import LookJob, is_table_of_pictures
from laion_face_builder.download.matching import RowKeys, matched
from laion_face_builder.download.plan import opened_index, rows_named
from laion_face_builder.download.sidecar import CheckedTar, sidecar_of, write_sidecar
from laion_face_builder.download.workers import Failed, Workers
from laion_face_builder.errors import BadFile, NotPrepared
from laion_face_builder.files import Fingerprint, digest, disk_errors, locked, make_fingerprint, read_fingerprint
from laion_face_builder.images.geometry import Resizing
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.parallel import cores
from laion_face_builder.shown import short

_ENDS_BYTES = 16 << 10
_NUMBERED = re.compile(r"\d{5,}")
_NAMED_PART = re.compile(r"(?:split_|part-)(\d+)")
#: Sidecars that this process has found up to date, by the state of the tars: asked for again with every shard.
_KNOWN: dict[object, Path] = {}


@dataclass(frozen=True)
class _Shard:
    path: Path
    name: str
    size: int
    modified: int

    def probe(self) -> str:
        """Return a digest of the shard's name, its size and the bytes at both ends: the same wherever it lies.

        Of a folder: of the names and sizes of its files.
        """
        hasher = hashlib.sha256(f"{self.name} {self.size} ".encode())
        if self.path.is_dir():
            with os.scandir(self.path) as files:
                listed = sorted((file.name, file.stat().st_size) for file in files)
            hasher.update(repr(listed).encode(errors="surrogateescape"))
            return hasher.hexdigest()[:32]
        with self.path.open("rb") as file:
            hasher.update(file.read(_ENDS_BYTES))
            file.seek(max(0, self.size - _ENDS_BYTES))
            hasher.update(file.read(_ENDS_BYTES))
        return hasher.hexdigest()[:32]


@dataclass(frozen=True)
class _CheckSettings:
    """How tars are checked. Only what differs from the default goes into fingerprints: older passes stay good."""

    max_pixels: int
    resizing: Resizing

    def for_sidecar(self) -> dict[str, Any]:
        resize = self.resizing.as_dict()
        return {"max_pixels": self.max_pixels, **({"resize": resize} if resize else {})}

    def for_pass(self) -> dict[str, Any]:
        # Older passes do not know what size a picture had before.
        return {"max_pixels": self.max_pixels, **({"fetched_size": True} if self.resizing else {})}


def adopted(
    folder: Path, data: DataDir, part: int, index: IndexPart | None, *, max_pixels: int, resizing: Resizing
) -> tuple[Path, Path]:
    """Return the part's folder below `folder`, and its sidecar, made on first use and again when the tars change.

    Args:
        folder: holds `split_000NN/` or `part-000NN/`, or the tars of this part themselves.
        data: keeps what was found out about the tars.
        part: number of the part.
        index: the part's index, if it does not lie in `data`.
        max_pixels: larger pictures fail.
        resizing: how the pictures were resized, by whoever made the folder.

    Raises:
        NotPrepared: no tar of this part is there, or none of its samples is in the index.
    """
    place, tars = _tars_of(folder, part)
    with opened_index(data, part, index) as rows:
        index_digest = digest(rows.fingerprint)
        state = (data, part, index_digest, max_pixels, resizing, *tars)
        if state not in _KNOWN or not _KNOWN[state].exists():
            _KNOWN[state] = _sidecar(tars, data, part, rows, _CheckSettings(max_pixels, resizing))
        return place, _KNOWN[state]


def unseen(folder: Path, data: DataDir, part: int, *, max_pixels: int, resizing: Resizing) -> list[Path]:
    """List the tars that `adopted` would check, since no earlier pass over them is kept. Makes nothing.

    Raises:
        NotPrepared: no tar of this part is there.
    """
    _, tars = _tars_of(folder, part)
    kept = data.root / "adopted" / "tars"
    jobs = [_job(tar, tar.probe(), kept, _CheckSettings(max_pixels, resizing)) for tar in tars]
    return [tar.path for tar, job in zip(tars, jobs, strict=True) if not job.is_done]


def part_folder(folder: Path, part: int) -> Path:
    """Find the folder of the part's tars: `split_000NN`, `part-000NN`, the same below `images`, or `folder` itself.

    Raises:
        NotPrepared: there is none.
    """
    names = (f"split_{part:05d}", f"part-{part:05d}", f"images/part-{part:05d}")
    for candidate in (folder / name for name in names):
        if candidate.is_dir():
            return candidate
    named = _NAMED_PART.fullmatch(folder.absolute().name)
    if (named is None or int(named[1]) == part) and next(_shards(folder), None) is not None:
        return folder
    raise NotPrepared(
        f"{folder}: no pictures of part {part} in it; expected {', '.join(names[:2])}, or the part's tars themselves."
    )


def _tars_of(folder: Path, part: int) -> tuple[Path, list[_Shard]]:
    place = part_folder(folder, part)
    shards = list(_shards(place))
    if not shards:
        raise NotPrepared(
            f"{place}: there are no shards in it; expected what img2dataset writes: 00000.tar (webdataset), a folder "
            f"00000 (files) or 00000.parquet with pictures in it (parquet)."
        )
    return place, shards


def _shards(place: Path) -> Iterator[_Shard]:
    """Yield the shards, later rounds last: of several successes the latest wins."""
    rounds = sorted(place.glob("retry-*"), key=lambda path: (len(path.name), path.name))
    for path in (path for folder in (place, *rounds) for path in _shards_in(folder)):
        state = path.stat()
        # What is in a folder has changed if the folder has; its own size tells nothing, nor is it everywhere the same.
        size = 0 if path.is_dir() else state.st_size
        yield _Shard(path, path.relative_to(place).as_posix(), size, state.st_mtime_ns)


def _shards_in(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    tars = sorted(folder.glob("*.tar"))
    folders = [path for path in sorted(folder.iterdir()) if _NUMBERED.fullmatch(path.name) and path.is_dir()]
    beside = {path.stem for path in (*tars, *folders)}
    tables = [path for path in sorted(folder.glob("*.parquet")) if path.stem not in beside]
    yield from (*tars, *folders, *(path for path in tables if is_table_of_pictures(path)))


def _sidecar(tars: list[_Shard], data: DataDir, part: int, index: IndexPart, how: _CheckSettings) -> Path:
    probes = [tar.probe() for tar in tars]
    fingerprint = make_fingerprint(
        "adopted", part=part, index=digest(index.fingerprint), tars=digest(probes), **how.for_sidecar()
    )
    sidecar = data.root / "adopted" / digest(fingerprint) / data.sidecar(part).name
    with locked(sidecar, f"part {part}: another process looks through {tars[0].path.parent}; waiting for that"):
        if not _is_current(sidecar, fingerprint):
            with disk_errors(sidecar):
                checked = _checked(tars, probes, data, how)
            table = _joined(checked, index, part, tars[0].path.parent, Removals.of(data).removed)
            write_sidecar(sidecar, table, fingerprint, checked)
    return sidecar


def _is_current(sidecar: Path, fingerprint: Fingerprint) -> bool:
    try:
        found = read_fingerprint(sidecar)
    except BadFile:
        return False
    return found is not None and {**found, "pictures": None} == {**fingerprint, "pictures": None}


def _checked(tars: list[_Shard], probes: list[str], data: DataDir, how: _CheckSettings) -> list[CheckedTar]:
    """Look through the shards that have not been looked through before; leave out those that are not whole.

    Raises:
        OSError: what was found out cannot be written, or a disk fails: then nobody knows whether they are whole.
    """
    folder, removed = data.root / "adopted" / "tars", Removals.of(data).removed
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [_job(tar, probe, folder, how) for tar, probe in zip(tars, probes, strict=True)]
    new = [replace(job, removed=removed) for job in jobs if not job.is_done]
    if new:
        logger.info("%s: looking through %d shards, once", tars[0].path.parent, len(new))
    workers: Workers[LookJob] = Workers(min(cores(), len(new)))
    with workers, progress.bar("looking through shards", len(new), "shard") as bar:
        for event in workers.each(new):
            if isinstance(event, Failed):
                if not isinstance(event.error, BadFile):
                    raise event.error
                logger.warning("%s", event.error)
            bar.update()
    skipped = [tar.name for tar, job in zip(tars, jobs, strict=True) if not job.is_done]
    if skipped:
        names = short(", ".join(skipped), 500)
        logger.warning("%s: %d shards cannot be used, and are left out: %s", tars[0].path.parent, len(skipped), names)
    return [CheckedTar(tar.name, Path(job.out)) for tar, job in zip(tars, jobs, strict=True) if job.is_done]


def _job(shard: _Shard, probe: str, folder: Path, how: _CheckSettings) -> LookJob:
    fingerprint = make_fingerprint("checked", tar=probe, **how.for_pass())
    return LookJob(str(shard.path), str(folder / f"{digest(fingerprint, 32)}.parquet"), how.max_pixels, fingerprint)


def _joined(checked: list[CheckedTar], index: IndexPart, part: int, place: Path, removed: Removed) -> pa.Table:
    sample_ids = index.read(0, index.num_rows, ["sample_id"])["sample_id"]
    # An index that lies elsewhere may have them.
    gone = rows_named(index, removed) if removed.has_rows else np.zeros(index.num_rows, bool)
    statuses = np.where(gone, Reason.TAKEN_DOWN.value, Reason.NOT_DOWNLOADED.value)
    found = matched(RowKeys.of(index), checked)
    is_there = found.positions >= 0
    logger.info("%s: %d of its %d samples are in part %d", place, is_there.sum(), found.held, part)
    if index.num_rows and not is_there.any():
        raise NotPrepared(
            f"{place}: none of its {found.held} samples is in the index of part {part}, by SAMPLE_ID, url or caption. "
            f"Is it the folder of another part?"
        )
    taken = found.table.take(pa.array(np.maximum(found.positions, 0), mask=~is_there | gone))
    return sidecar_of(sample_ids, taken, pa.chunked_array([pa.array(statuses, pa.string())]))
