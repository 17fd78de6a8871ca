"""Reckon what preparing costs, before it is spent: bytes to download, to read and to write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from laion_face_builder.errors import LaionFaceError
from laion_face_builder.files import disk_free, human_size
from laion_face_builder.index.prepare_plan import PartPlan
from laion_face_builder.index.staged import is_staged, staged_file, staging_folder
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.shown import ranges
from laion_face_builder.sources.copied_file import RemoteFile
from laion_face_builder.sources.metadata_kinds import CONVERTED

#: What our files take of the disk, as shares of the upstream files' sizes: measured on a full part, rounded up.
#: The faces are written twice, by themselves and in the index.
SHARES = {"ids": 0.2, "detections": 0.4, "metadata": 0.2}
#: A converted file holds face rows alone, and all of them go into the index.
CONVERTED_SHARE = 1.5


@dataclass(frozen=True)
class Costs:
    """What preparing some parts takes.

    Attributes:
        downloads: bytes still missing of each file, by kind of file; None if unknown.
        read: bytes of whole metadata that have to be read, local or remote, less the files whose rows are staged; 0 if
            the metadata is by part.
        files: how many metadata files have to be read.
        written: bytes of all that is written, roughly.
    """

    parts: tuple[int, ...]
    downloads: dict[str, list[int | None]]
    read: int
    files: int
    written: int

    @classmethod
    def of(cls, jobs: Sequence[PartPlan]) -> Costs:
        """Reckon the costs of parts that are not done."""
        sources = jobs[0].data.sources
        id_lists = {job.id_list.name: job.id_list for job in jobs if job.lacks_ids}
        detections = {job.detections.name: job.detections for job in jobs if job.lacks_faces}
        indexed = [job for job in jobs if job.lacks_index]
        metadata = {file.name: file for job in indexed for file in job.metadata.files}
        is_whole = bool(indexed) and indexed[0].metadata.is_whole
        unread = _unstaged(indexed) if is_whole else list(metadata.values())
        to_fetch = {"ids": [*id_lists.values()], "detections": [*detections.values()], "metadata": unread}
        share = len(indexed) / len(ALL_PARTS) if is_whole else 1.0
        written = sum(_written(kind, file) for kind in ("ids", "detections") for file in to_fetch[kind])
        written += share * sum(_written("metadata", file) for file in metadata.values())
        # Rows of whole metadata are written twice: while they wait, and in the index.
        written += share * sum(_written("metadata", file) for file in unread) if is_whole else 0
        return cls(
            tuple(job.part for job in jobs),
            {kind: [file.missing(sources) for file in files] for kind, files in to_fetch.items()},
            sum(file.size or 0 for file in unread) if is_whole else 0,
            len(unread),
            int(written),
        )

    @property
    def fetched(self) -> int:
        """Bytes to download, of the files whose size is stated."""
        return sum(size or 0 for some in self.downloads.values() for size in some)

    @property
    def is_stated(self) -> bool:
        """Whether the sizes of all files to download are stated."""
        return not any(None in some for some in self.downloads.values())

    def most_written(self, discard_sources: bool, side_by_side: int) -> int:
        """Estimate the most bytes that are on the disk at the same time.

        Args:
            side_by_side: downloaded files that are there at the same time at least.
        """
        sizes = sorted((size or 0 for some in self.downloads.values() for size in some), reverse=True)
        return self.written + sum(sizes[:side_by_side] if discard_sources else sizes)

    def say(self, data: DataDir) -> None:
        """Log what is downloaded and written, and the room that there is."""
        free = f"{human_size(disk_free(data.root))} free at {data.root}"
        logger.info(
            "parts %s: %s to download; ids, faces and index take about %s; %s",
            ranges(self.parts, ", "),
            self.to_download(),
            human_size(self.written),
            free if data.address is None else f"kept at {data.where}",
        )
        if self.read:
            logger.info("%s", self.to_read())

    def to_download(self) -> str:
        """Describe what is downloaded of each kind."""
        return ", ".join(f"{kind} {_total(some)}" for kind, some in self.downloads.items())

    def to_read(self) -> str:
        """Describe what is read of whole metadata."""
        parts = f"{len(self.parts)} {'part' if len(self.parts) == 1 else 'parts'}"
        files = f"{human_size(self.read)} in {self.files} files of metadata"
        return f"{files} are read for {parts}; all {len(ALL_PARTS)} cost no more"

    def check_room(self, data: DataDir, discard_sources: bool, side_by_side: int) -> None:
        """Raise an error if the disk has no room for all that; what is kept at an address is made elsewhere.

        Raises:
            LaionFaceError: the disk has no room.
        """
        needed, free = self.most_written(discard_sources, side_by_side), disk_free(data.root)
        if data.address is None and needed > free:
            hint = "" if discard_sources else ", free each source once it is used (--discard-sources)"
            raise LaionFaceError(
                f"{data.root}: about {human_size(needed)} are needed ({human_size(self.fetched)} to download), "
                f"{human_size(free)} are free. Name another --data-dir, fewer --parts{hint}, or make room."
            )


def _unstaged(jobs: Sequence[PartPlan]) -> list[RemoteFile]:
    """Return the files of whole metadata that these parts need read: those whose rows are not staged yet."""
    first, data = jobs[0], jobs[0].data
    files = first.metadata.files
    if (ids := first.content(first.id_list)) is None:
        return list(files)
    folder, parts = staging_folder(data, ids, [job.part for job in jobs])

    def waits(number: int, file: RemoteFile) -> bool:
        return is_staged(data, staged_file(folder, number), ids, parts, lambda: first.content(file))

    return [file for number, file in enumerate(files) if not waits(number, file)]


def _written(kind: str, file: RemoteFile) -> float:
    is_converted = kind == "metadata" and file.name.endswith(tuple(CONVERTED.format(part=part) for part in ALL_PARTS))
    return (CONVERTED_SHARE if is_converted else SHARES[kind]) * (file.size or 0)


def _total(sizes: Iterable[int | None]) -> str:
    sizes = list(sizes)
    known = human_size(sum(size for size in sizes if size is not None))
    return f"{known} and more (not all sizes are stated)" if None in sizes else known
