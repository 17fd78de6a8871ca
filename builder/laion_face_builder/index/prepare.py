"""From upstream to the index, part by part: ids, faces, index.

Each of the three files is written whole and carries the versions of the upstream files that it was made from, so a run
that was killed goes on with the first file that is missing. One process works on a part at a time; others wait and find
it done.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from laion_face_builder.errors import LaionFaceError, SourceError, StateConflict
from laion_face_builder.files import Fingerprint, human_size, locked, read_fingerprint
from laion_face_builder.index.detections import faces_fingerprint, write_faces
from laion_face_builder.index.ids import ids_fingerprint, write_ids
from laion_face_builder.index.writer import IndexInputs, index_fingerprint, write_index
from laion_face_builder.layout import DataDir
from laion_face_builder.upstream.source_files import RemoteFile
from laion_face_builder.upstream.sources import Upstream

logger = logging.getLogger("laion_face")

#: What our files take of the disk, as shares of the upstream files' sizes: measured on a full part, rounded up.
#: The faces are written twice, by themselves and in the index.
SHARES = {"ids": 0.2, "detections": 0.4, "metadata": 0.2}
#: A converted file holds face rows alone, and all of them go into the index.
CONVERTED_SHARE = 1.5


@dataclass(frozen=True)
class _PartSources:
    """The upstream files of a part, looked up; `folder` is where copies and notes of them are."""

    folder: Path
    part: int
    id_list: RemoteFile
    detections: RemoteFile
    metadata: RemoteFile

    @property
    def ids_fingerprint(self) -> Fingerprint:
        return ids_fingerprint(self.part, _content(self.id_list, self.folder))

    @property
    def faces_fingerprint(self) -> Fingerprint:
        return faces_fingerprint(self.part, _content(self.detections, self.folder))

    @property
    def index_fingerprint(self) -> Fingerprint:
        ids, faces, metadata = (_content(file, self.folder) for file in (self.id_list, self.detections, self.metadata))
        return index_fingerprint(self.part, ids=ids, faces=faces, metadata=metadata)

    def missing(self, data: DataDir) -> list[RemoteFile]:
        """The upstream files that are still needed to have ids, faces and index."""
        needed = [
            (self.id_list, data.ids(self.part), self.ids_fingerprint),
            (self.detections, data.faces(self.part), self.faces_fingerprint),
            (self.metadata, data.index(self.part), self.index_fingerprint),
        ]
        return [file for file, ours, fingerprint in needed if read_fingerprint(ours) != fingerprint]


def prepare(data: DataDir, parts: Sequence[int], upstream: Upstream, *, discard_sources: bool = False) -> None:
    """Makes ids, faces and index of `parts`, as far as they are not there yet from these very sources.

    Says what it will fetch before it does. If upstream does not answer, a part that is there already is used as it is.

    Args:
        discard_sources: free each downloaded file once all that is made from it is written. Local files stay.

    Raises:
        SourceError: a source cannot be had; BadFile, UnsafePickle: it is not what it has to be.
        StateConflict: pictures were downloaded for an index from other sources.
        LaionFaceError: the disk has no room.
    """
    found = _look_up(data, parts, upstream)
    jobs = [sources for sources in found if sources.missing(data)]
    for job in jobs:
        _refuse_conflict(data, job)
    if jobs:
        _check_room(data, jobs, discard_sources)
    _make_ids(data, found, discard_sources)
    with tqdm(total=len(found), desc="prepare", unit="part", disable=None, file=sys.stderr) as bar:
        for sources in found:
            _make_part(data, sources, discard_sources)
            bar.update()


def prepare_part(data: DataDir, part: int, upstream: Upstream, *, discard_sources: bool = False) -> Path:
    """Like `prepare` for one part; gives its index file."""
    prepare(data, [part], upstream, discard_sources=discard_sources)
    return data.index(part)


def _look_up(data: DataDir, parts: Sequence[int], upstream: Upstream) -> list[_PartSources]:
    """What upstream has for each part, without the parts that are used as they are since it does not answer."""
    try:
        id_list = upstream.id_list()
    except SourceError as error:
        for part in parts:
            _reuse(data, part, {}, error)
        return []
    found = []
    for part in parts:
        known = {"ids": id_list.content(data.sources)}
        try:
            detections = upstream.detections(part)
            known["faces"] = detections.content(data.sources)
            found.append(_PartSources(data.sources, part, id_list, detections, upstream.metadata(part)))
        except SourceError as error:
            _reuse(data, part, known, error)
    return found


def _content(file: RemoteFile, folder: Path) -> str:
    """What is in a file; "unread" if that is not known before it has been fetched."""
    return file.content(folder) or "unread"


def _reuse(data: DataDir, part: int, known: dict[str, str | None], error: SourceError) -> None:
    """Lets a part pass that is there, and not from other sources as far as they are known.

    Raises:
        SourceError: it is not there, or outdated.
    """
    ours = read_fingerprint(data.index(part))
    if ours is None or any(content and ours.get(kind) != content for kind, content in known.items()):
        raise error
    logger.warning(
        "part %d is prepared and is used as it is; whether its sources changed is not known: %s", part, error
    )


def _refuse_conflict(data: DataDir, sources: _PartSources) -> None:
    part, ours = sources.part, read_fingerprint(data.index(sources.part))
    if ours is None or ours == sources.index_fingerprint:
        return
    tars = data.tars(part)
    if not data.images_fingerprint(part).exists() and next(tars.rglob("*.tar"), None) is None:
        return
    for file in (sources.id_list, sources.detections, sources.metadata):
        _read(file, data)
    if ours == (new := sources.index_fingerprint):
        return
    changed = ", ".join(f"{key} {ours.get(key)} -> {new[key]}" for key in new if ours.get(key) != new[key])
    raise StateConflict(
        f"{data.index(part)}: made from other sources than those named now ({changed}), and pictures were downloaded "
        "for it. Either name the old sources again (source_repo, source_revision, metadata), or move "
        f"{tars}, {data.images_fingerprint(part).name} and {data.sidecar(part).name} away to start this part anew."
    )


def _check_room(data: DataDir, jobs: Sequence[_PartSources], discard_sources: bool) -> None:
    """Says the sizes, and stops if they do not fit."""
    kinds: dict[str, dict[str, RemoteFile]] = {"ids": {}, "detections": {}, "metadata": {}}
    for job in jobs:
        for file in job.missing(data):
            kind = "ids" if file is job.id_list else "detections" if file is job.detections else "metadata"
            kinds[kind][file.name] = file
    fetched = {kind: [file.missing(data.sources) for file in files.values()] for kind, files in kinds.items()}
    sizes = [size or 0 for some in fetched.values() for size in some]
    written = _to_be_written(kinds)
    needed = written + (max(sizes, default=0) if discard_sources else sum(sizes))
    free = shutil.disk_usage(_existing(data.root)).free
    logger.info(
        "parts %s: %s to download; ids, faces and index take about %s; %s free at %s",
        ", ".join(str(job.part) for job in jobs),
        ", ".join(f"{kind} {_total(some)}" for kind, some in fetched.items()),
        human_size(written),
        human_size(free),
        data.root,
    )
    if needed > free:
        hint = "" if discard_sources else ", free each source once it is used (--discard-sources)"
        raise LaionFaceError(
            f"{data.root}: about {human_size(needed)} are needed ({human_size(sum(sizes))} to download), "
            f"{human_size(free)} are free. Name another --data-dir, fewer --parts{hint}, or make room."
        )


def _to_be_written(kinds: dict[str, dict[str, RemoteFile]]) -> int:
    def share(kind: str, file: RemoteFile) -> float:
        return CONVERTED_SHARE if "laion_face_part_" in file.name else SHARES[kind]

    return int(sum(share(kind, file) * (file.size or 0) for kind, files in kinds.items() for file in files.values()))


def _total(sizes: Sequence[int | None]) -> str:
    known = human_size(sum(size for size in sizes if size is not None))
    return f"{known} and more (not all sizes are stated)" if None in sizes else known


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _make_ids(data: DataDir, found: Sequence[_PartSources], discard_sources: bool) -> None:
    """The ids of all parts: one load of the big pickle serves them all."""
    with locked(data.root / "ids" / "id-list"):
        missing = [sources for sources in found if read_fingerprint(data.ids(sources.part)) != sources.ids_fingerprint]
        for sources in missing:
            _remove_partials(data.ids(sources.part))
        if missing:
            id_list = missing[0].id_list
            path = id_list.fetch(data.sources)
            write_ids(path, data, [sources.part for sources in missing], _content(id_list, data.sources))
        _discard(data, [sources.id_list for sources in found[:1]], discard_sources)


def _make_part(data: DataDir, sources: _PartSources, discard_sources: bool) -> None:
    part = sources.part
    with locked(data.index(part)):
        _read(sources.detections, data)
        if read_fingerprint(data.faces(part)) != sources.faces_fingerprint:
            _remove_partials(data.faces(part))
            path = sources.detections.fetch(data.sources)
            write_faces(path, data, part, _content(sources.detections, data.sources))
        _discard(data, [sources.detections], discard_sources)
        _read(sources.metadata, data)
        if read_fingerprint(data.index(part)) != sources.index_fingerprint:
            _remove_partials(data.index(part))
            metadata = sources.metadata.fetch(data.sources)
            inputs = IndexInputs(part, data.ids(part), data.faces(part), metadata, sources.index_fingerprint)
            rows = write_index(data.index(part), inputs)
            logger.info("part %d: %d rows in %s", part, rows, data.index(part))
        _discard(data, [sources.metadata], discard_sources)


def _read(file: RemoteFile, data: DataDir) -> None:
    """Fetches a file whose content is not known otherwise: it may be the one that our files were made from."""
    if file.content(data.sources) is None:
        file.fetch(data.sources)


def _discard(data: DataDir, files: Sequence[RemoteFile], discard_sources: bool) -> None:
    for file in files if discard_sources else ():
        file.discard(data.sources)


def _remove_partials(ours: Path) -> None:
    """What killed writers of this very file left; other parts' may be at work in the same folder."""
    for partial in ours.parent.glob(f".{ours.name}.*.partial"):
        partial.unlink(missing_ok=True)
