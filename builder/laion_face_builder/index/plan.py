"""What preparing has to do: what upstream has, what is there already, and what must not be destroyed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder.errors import SourceError, StateConflict
from laion_face_builder.files import Fingerprint, digest, read_fingerprint
from laion_face_builder.index.detections import faces_fingerprint
from laion_face_builder.index.ids import ids_fingerprint
from laion_face_builder.index.writer import index_fingerprint
from laion_face_builder.layout import DataDir
from laion_face_builder.upstream.kinds import Whole
from laion_face_builder.upstream.source_files import RemoteFile
from laion_face_builder.upstream.sources import Upstream

logger = logging.getLogger("laion_face")


@dataclass(frozen=True)
class Metadata:
    """The metadata that a part is joined with.

    Attributes:
        where: what people call it.
        files: one file of this very part; or, whole, all files, whose rows are of any part.
        is_whole: which of both.
    """

    where: str
    files: tuple[RemoteFile, ...]
    is_whole: bool

    def content(self, sources: Path) -> str | None:
        """What the bytes are, in order; None if that is not known before they have been fetched."""
        contents = [file.content(sources) for file in self.files]
        if None in contents:
            return None
        return f"whole:{digest(contents, 64)}" if self.is_whole else contents[0]


@dataclass(frozen=True)
class PartPlan:
    """One part: its upstream files, looked up, and our files that are made of them."""

    data: DataDir
    part: int
    id_list: RemoteFile
    detections: RemoteFile
    metadata: Metadata

    @property
    def ids_fingerprint(self) -> Fingerprint | None:
        """Of ids/part-000NN.parquet; None before it is known what is in the sources, like the other two."""
        content = self.id_list.content(self.data.sources)
        return ids_fingerprint(self.part, content) if content else None

    @property
    def faces_fingerprint(self) -> Fingerprint | None:
        """Of faces/part-000NN.parquet."""
        content = self.detections.content(self.data.sources)
        return faces_fingerprint(self.part, content) if content else None

    @property
    def index_fingerprint(self) -> Fingerprint | None:
        """Of index/part-000NN.parquet."""
        sources = self.data.sources
        ids, faces = self.id_list.content(sources), self.detections.content(sources)
        metadata = self.metadata.content(sources)
        if ids and faces and metadata:
            return index_fingerprint(self.part, ids=ids, faces=faces, metadata=metadata)
        return None

    @property
    def lacks_ids(self) -> bool:
        """Whether the ids have to be made, as far as is known."""
        return not _is_made(self.data.ids(self.part), self.ids_fingerprint)

    @property
    def lacks_faces(self) -> bool:
        """Whether the faces have to be made."""
        return not _is_made(self.data.faces(self.part), self.faces_fingerprint)

    @property
    def lacks_index(self) -> bool:
        """Whether the index has to be made."""
        return not _is_made(self.data.index(self.part), self.index_fingerprint)

    @property
    def is_done(self) -> bool:
        """Whether nothing has to be made."""
        return not (self.lacks_ids or self.lacks_faces or self.lacks_index)

    def refuse_conflict(self) -> None:
        """Keep pictures that were downloaded for the index that is there.

        Raises:
            StateConflict: it was made from other sources.
        """
        if not has_pictures(self.data, self.part) or (new := self.index_fingerprint) is None:
            return
        ours = read_fingerprint(self.data.index(self.part))
        if ours is None or ours == new:
            return
        changed = ", ".join(f"{key} {ours.get(key)} -> {new[key]}" for key in new if ours.get(key) != new[key])
        raise StateConflict(
            f"{self.data.index(self.part)}: made from other sources than those named now ({changed}), and pictures "
            "were downloaded for it. Either name the old sources again (source_repo, source_revision, metadata), or "
            f"move {self.data.tars(self.part)}, {self.data.images_fingerprint(self.part).name} and "
            f"{self.data.sidecar(self.part).name} away to start this part anew."
        )


def has_pictures(data: DataDir, part: int) -> bool:
    """Whether pictures were downloaded for the index of a part."""
    return data.images_fingerprint(part).exists() or next(data.tars(part).rglob("*.tar"), None) is not None


def plan_parts(data: DataDir, parts: Sequence[int], upstream: Upstream) -> list[PartPlan]:
    """Look up what upstream has for each part, without the parts that are used as they are.

    These are parts that are there already, of which upstream does not say whether they are still up to date; and those
    with pictures that an earlier version of this program joined from the same sources.

    Raises:
        SourceError: a source cannot be had for a part that is not there.
    """
    try:
        id_list = upstream.id_list()
    except SourceError as error:
        for part in parts:
            _reuse(data, part, {}, error)
        return []
    found = [_plan(data, part, upstream, id_list) for part in parts]
    return [plan for plan in found if plan is not None and not _is_of_earlier_version(plan)]


def _plan(data: DataDir, part: int, upstream: Upstream, id_list: RemoteFile) -> PartPlan | None:
    known = {"ids": id_list.content(data.sources)}
    try:
        detections = upstream.detections(part)
        known["faces"] = detections.content(data.sources)
        source = upstream.metadata_source()
        if isinstance(source, Whole):
            metadata = Metadata(source.where, source.files, is_whole=True)
        else:
            metadata = Metadata(source.where, (source.part(part),), is_whole=False)
        return PartPlan(data, part, id_list, detections, metadata)
    except SourceError as error:
        _reuse(data, part, known, error)
        return None


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


def _is_of_earlier_version(plan: PartPlan) -> bool:
    """Whether the index is of the same sources, joined as earlier versions did, and has pictures that belong to it."""
    ours = read_fingerprint(plan.data.index(plan.part))
    if ours is None or "join" in ours or not has_pictures(plan.data, plan.part):
        return False
    sources = plan.data.sources
    ids, faces = plan.id_list.content(sources), plan.detections.content(sources)
    metadata = plan.metadata.content(sources)
    # Earlier versions knew the metadata by their footers, if they were not the Hub's: these say nothing now.
    is_known = not str(ours.get("metadata")).startswith(("footer:", "etag:", "modified:"))
    if (ours.get("ids"), ours.get("faces")) != (ids, faces) or (is_known and ours.get("metadata") != metadata):
        return False
    logger.warning(
        "part %d was prepared by an earlier version and has pictures: it is used as it is, without a proof of its "
        "join. To make it anew, move %s and %s away.",
        plan.part,
        plan.data.index(plan.part),
        plan.data.tars(plan.part),
    )
    return True


def _is_made(path: Path, fingerprint: Fingerprint | None) -> bool:
    return fingerprint is not None and read_fingerprint(path) == fingerprint
