"""Plan what preparing has to do: what upstream has, what is there already, what must not be destroyed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from laion_face_builder.errors import SourceError, StateConflict
from laion_face_builder.files import Fingerprint, digest
from laion_face_builder.index.detections import faces_fingerprint
from laion_face_builder.index.ids import ids_fingerprint
from laion_face_builder.index.removals import Removals, without_stamp
from laion_face_builder.index.writer import index_fingerprint
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.sources import data_store
from laion_face_builder.sources.copied_file import RemoteFile
from laion_face_builder.sources.metadata_kinds import Whole
from laion_face_builder.sources.sources import Upstream


@dataclass(frozen=True)
class Metadata:
    """The metadata that a part is joined with.

    Attributes:
        where: what people call it.
        files: one file of this very part; or, whole, all files, whose rows are of any part.
        is_whole: whether these are all files, rather than one of the part.
    """

    where: str
    files: tuple[RemoteFile, ...]
    is_whole: bool


@dataclass(frozen=True)
class PartPlan:
    """The plan for one part: its upstream files, looked up, and our files that are made of them.

    Attributes:
        is_dry: nothing is written, not even notes of what upstream's files contain.
        known: what upstream's files contain, by name, as far as somebody else has read them.
    """

    data: DataDir
    part: int
    id_list: RemoteFile
    detections: RemoteFile
    metadata: Metadata
    is_dry: bool = False
    known: Mapping[str, str] = field(default_factory=dict)

    def content(self, of: RemoteFile | Metadata) -> str | None:
        """Return the digest of a source's bytes; None before it is known."""
        if isinstance(of, RemoteFile):
            return self.known.get(of.name) or of.content(self.data.sources, remember=not self.is_dry)
        contents = [self.content(file) for file in of.files]
        if None in contents:
            return None
        return f"whole:{digest(contents, 64)}" if of.is_whole else contents[0]

    @property
    def ids_fingerprint(self) -> Fingerprint | None:
        """The fingerprint of ids/part-000NN.parquet; None before the content of the sources is known."""
        content = self.content(self.id_list)
        return ids_fingerprint(self.part, content) if content else None

    @property
    def faces_fingerprint(self) -> Fingerprint | None:
        """The fingerprint of faces/part-000NN.parquet; None before the content of the sources is known."""
        content = self.content(self.detections)
        return faces_fingerprint(self.part, content) if content else None

    @property
    def index_fingerprint(self) -> Fingerprint | None:
        """The fingerprint of index/part-000NN.parquet; None before the content of the sources is known.

        With what was taken down from the part, as far as that has been noted.
        """
        ids, faces = self.content(self.id_list), self.content(self.detections)
        metadata = self.content(self.metadata)
        if ids and faces and metadata:
            made_from = index_fingerprint(self.part, ids=ids, faces=faces, metadata=metadata)
            return made_from if self.data.address else {**made_from, **Removals.of(self.data).stamp(self.part)}
        return None

    @property
    def lacks_ids(self) -> bool:
        """Whether the ids have to be made, as far as is known."""
        return not _is_made(self.data, self.data.ids(self.part), lambda: self.ids_fingerprint)

    @property
    def lacks_faces(self) -> bool:
        """Whether the faces have to be made."""
        return not _is_made(self.data, self.data.faces(self.part), lambda: self.faces_fingerprint)

    @property
    def lacks_index(self) -> bool:
        """Whether the index has to be made."""
        return not _is_made(self.data, self.data.index(self.part), lambda: self.index_fingerprint)

    @property
    def is_done(self) -> bool:
        """Whether nothing has to be made."""
        return not (self.lacks_ids or self.lacks_faces or self.lacks_index)

    def refuse_conflict(self) -> None:
        """Refuse to replace an index that pictures were downloaded for.

        Raises:
            StateConflict: that index was made from other sources.
        """
        if not has_pictures(self.data, self.part) or (new := self.index_fingerprint) is None:
            return
        ours = data_store.fingerprint(self.data, self.data.index(self.part))
        if ours is None or without_stamp(ours) == without_stamp(new):
            return
        raise StateConflict(
            f"{self.data.index(self.part)}: made from other sources than those named now ({changes(ours, new)}), and "
            "pictures were downloaded for it. Either name the old sources again (source_repo, source_revision, "
            f"metadata), or move {self.data.tars(self.part)}, {self.data.images_fingerprint(self.part).name} and "
            f"{self.data.sidecar(self.part).name} away to start this part anew."
        )


@dataclass(frozen=True)
class Passed:
    """A part that is used as it is, and why it is not planned."""

    part: int
    why: str


def changes(ours: Fingerprint, new: Fingerprint) -> str:
    """Describe what a file was made from, and is to be made from now."""
    keys = (*new, *(key for key in ours if key not in new))
    return ", ".join(f"{key} {ours.get(key)} -> {new.get(key)}" for key in keys if ours.get(key) != new.get(key))


def has_pictures(data: DataDir, part: int) -> bool:
    """Tell whether pictures were downloaded for the index of a part."""
    is_begun = data_store.has(data, data.images_fingerprint(part))
    return is_begun or any(path.suffix == ".tar" for path in data_store.below(data, data.tars(part)))


def plan_parts(data: DataDir, parts: Sequence[int], upstream: Upstream) -> list[PartPlan]:
    """Look up what upstream has for each part; log, and leave out, the parts that are used as they are.

    Raises:
        SourceError: a source cannot be had for a part that is not there.
    """
    found = look_up_parts(data, parts, upstream)
    for one in found:
        if isinstance(one, Passed):
            logger.warning("part %d is prepared and is used as it is; %s", one.part, one.why)
    return [one for one in found if isinstance(one, PartPlan)]


def look_up_parts(
    data: DataDir, parts: Sequence[int], upstream: Upstream, *, is_dry: bool = False
) -> list[PartPlan | Passed]:
    """Look up what upstream has for each part.

    Passed are parts that are there already, of which upstream does not say whether they are still up to date; and those
    with pictures that an earlier version of this program joined from the same sources.

    Args:
        is_dry: see `PartPlan`.

    Raises:
        SourceError: a source cannot be had for a part that is not there.
    """
    try:
        id_list = upstream.id_list()
    except SourceError as error:
        return [_reuse(data, part, {}, error) for part in parts]
    return [_look_up(data, part, upstream, id_list, is_dry) for part in parts]


def _look_up(data: DataDir, part: int, upstream: Upstream, id_list: RemoteFile, is_dry: bool) -> PartPlan | Passed:
    known = {"ids": id_list}
    try:
        known["faces"] = detections = upstream.detections(part)
        source = upstream.metadata_source()
        if isinstance(source, Whole):
            metadata = Metadata(source.where, source.files, is_whole=True)
        else:
            metadata = Metadata(source.where, (source.part(part),), is_whole=False)
    except SourceError as error:
        contents = {kind: file.content(data.sources, remember=not is_dry) for kind, file in known.items()}
        return _reuse(data, part, contents, error)
    plan = PartPlan(data, part, id_list, detections, metadata, is_dry)
    return _of_earlier_version(plan) or plan


def _reuse(data: DataDir, part: int, known: dict[str, str | None], error: SourceError) -> Passed:
    """Return `Passed` for a part that is there, and not from other sources as far as they are known.

    Raises:
        SourceError: the part is not there, or outdated.
    """
    ours = data_store.fingerprint(data, data.index(part))
    if ours is None or any(content and ours.get(kind) != content for kind, content in known.items()):
        raise error
    return Passed(part, f"whether its sources changed is not known: {error}")


def _of_earlier_version(plan: PartPlan) -> Passed | None:
    """Return `Passed` for an index with pictures that an earlier version joined from the same sources; else None."""
    ours = data_store.fingerprint(plan.data, plan.data.index(plan.part))
    if ours is None or "join" in ours or not has_pictures(plan.data, plan.part):
        return None
    ids, faces, metadata = plan.content(plan.id_list), plan.content(plan.detections), plan.content(plan.metadata)
    # Earlier versions named metadata that was not the Hub's by footers, which cannot be compared now.
    is_known = not str(ours.get("metadata")).startswith(("footer:", "etag:", "modified:"))
    if (ours.get("ids"), ours.get("faces")) != (ids, faces) or (is_known and ours.get("metadata") != metadata):
        return None
    return Passed(
        plan.part,
        "it was prepared by an earlier version and has pictures, and there is no proof of its join. To make it anew, "
        f"move {plan.data.index(plan.part)} and {plan.data.tars(plan.part)} away.",
    )


def _is_made(data: DataDir, path: Path, fingerprint: Callable[[], Fingerprint | None]) -> bool:
    """Tell whether a file is there with this fingerprint, which is asked for only if the file is there."""
    if not data_store.has(data, path) or (wanted := fingerprint()) is None:
        return False
    return data_store.fingerprint(data, path) == wanted
