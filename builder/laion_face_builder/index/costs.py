"""What preparing costs: bytes to download, to read and to write, said before they are spent."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder.errors import LaionFaceError
from laion_face_builder.files import human_size
from laion_face_builder.index.plan import PartPlan
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.upstream.kinds import CONVERTED
from laion_face_builder.upstream.source_files import RemoteFile

logger = logging.getLogger("laion_face")

#: What our files take of the disk, as shares of the upstream files' sizes: measured on a full part, rounded up.
#: The faces are written twice, by themselves and in the index.
SHARES = {"ids": 0.2, "detections": 0.4, "metadata": 0.2}
#: A converted file holds face rows alone, and all of them go into the index.
CONVERTED_SHARE = 1.5


@dataclass(frozen=True)
class Costs:
    """What preparing some parts takes.

    Attributes:
        downloads: what is fetched, by what it is: bytes still missing of each file, None if unknown.
        read: bytes of whole metadata that have to be read, from here or afar; 0 if it is by part.
        files: how many files that is.
        written: bytes of all that is written, roughly.
    """

    parts: tuple[int, ...]
    downloads: dict[str, list[int | None]]
    read: int
    files: int
    written: int

    @classmethod
    def of(cls, jobs: Sequence[PartPlan]) -> Costs:
        """Of parts that are not done."""
        sources = jobs[0].data.sources
        id_lists = {job.id_list.name: job.id_list for job in jobs if job.lacks_ids}
        detections = {job.detections.name: job.detections for job in jobs if job.lacks_faces}
        indexed = [job for job in jobs if job.lacks_index]
        metadata = {file.name: file for job in indexed for file in job.metadata.files}
        is_whole = bool(indexed) and indexed[0].metadata.is_whole
        kinds = {"ids": id_lists, "detections": detections, "metadata": metadata}
        share = len(indexed) / len(ALL_PARTS) if is_whole else 1.0
        written = sum(_written(kind, file) for kind, files in kinds.items() for file in files.values())
        # Rows of whole metadata are written twice: while they wait, and in the index.
        written += sum(_written("metadata", file) for file in metadata.values()) * (2 * share - 1 if is_whole else 0)
        return cls(
            tuple(job.part for job in jobs),
            {kind: [file.missing(sources) for file in files.values()] for kind, files in kinds.items()},
            sum(file.size or 0 for file in metadata.values()) if is_whole else 0,
            len(metadata),
            int(written),
        )

    def check_room(self, data: DataDir, discard_sources: bool, side_by_side: int) -> None:
        """Say the sizes, and stop if they do not fit.

        Args:
            side_by_side: files that are there at the same time at least.

        Raises:
            LaionFaceError: the disk has no room.
        """
        sizes = sorted((size or 0 for some in self.downloads.values() for size in some), reverse=True)
        needed = self.written + sum(sizes[:side_by_side] if discard_sources else sizes)
        free = shutil.disk_usage(_existing(data.root)).free
        logger.info(
            "parts %s: %s to download; ids, faces and index take about %s; %s free at %s",
            ", ".join(map(str, self.parts)),
            ", ".join(f"{kind} {_total(some)}" for kind, some in self.downloads.items()),
            human_size(self.written),
            human_size(free),
            data.root,
        )
        if self.read:
            logger.info(
                "%s in %d files of metadata are read for %d %s; all %d cost no more",
                human_size(self.read),
                self.files,
                len(self.parts),
                "part" if len(self.parts) == 1 else "parts",
                len(ALL_PARTS),
            )
        if needed > free:
            hint = "" if discard_sources else ", free each source once it is used (--discard-sources)"
            raise LaionFaceError(
                f"{data.root}: about {human_size(needed)} are needed ({human_size(sum(sizes))} to download), "
                f"{human_size(free)} are free. Name another --data-dir, fewer --parts{hint}, or make room."
            )


def _written(kind: str, file: RemoteFile) -> float:
    is_converted = kind == "metadata" and file.name.endswith(tuple(CONVERTED.format(part=part) for part in ALL_PARTS))
    return (CONVERTED_SHARE if is_converted else SHARES[kind]) * (file.size or 0)


def _total(sizes: Iterable[int | None]) -> str:
    sizes = list(sizes)
    known = human_size(sum(size for size in sizes if size is not None))
    return f"{known} and more (not all sizes are stated)" if None in sizes else known


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
