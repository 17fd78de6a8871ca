"""Describe one shard of a download: small, picklable, and all that a process anywhere needs to make it.

What a task needs of the index it reads itself. What is done is told by files alone, so a task may be run twice, or by
two processes: the shard that is whole last is the one that is there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc

from laion_face_builder.download.check import CheckJob
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.shard_files import ShardFiles
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.files import make_fingerprint
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.parquet_files import table_of
from laion_face_builder.sources import data_store

#: Samples of a shard from one position to before another.
Span = tuple[int, int]


@dataclass(frozen=True)
class ShardPlace:
    """Which shard of which round, and where its files lie.

    Attributes:
        part: names of the part's files.
        images: digest of what the part's downloads are made with.
        round: 0 for the first round, else the number of the retry.
        shard: its number.
        start: of the round's rows, the first of this shard.
        samples: how many it has.
        max_pixels: larger pictures fail.
    """

    part: PartFiles
    images: str
    round: int
    shard: int
    start: int
    samples: int
    max_pixels: int

    @property
    def files(self) -> ShardFiles:
        """The shard's tar and what lies beside it."""
        return ShardFiles(self.part.tars(self.round), self.shard)

    def check_job(self, files: ShardFiles | None = None) -> CheckJob | None:
        """Return the job that checks the shard and knows whether its sidecar rows are there; None if a file is missing.

        Args:
            files: the shard's files while they lie elsewhere; those in place if None.
        """
        files, data = files or self.files, self.part.data
        stats = files.stats_digest() if data_store.brought(data, files.stats) else None
        tar_bytes = data_store.size(data, files.tar)
        if stats is None or tar_bytes is None:
            return None
        where = {"images": self.images, "round": self.round, "shard": self.shard, "max_pixels": self.max_pixels}
        return CheckJob(
            tar=str(files.tar),
            out=str(self.part.checked_tar(self.round, self.shard)),
            id_column="row",
            samples=self.samples,
            max_pixels=self.max_pixels,
            fingerprint=make_fingerprint("checked", **where, stats=stats, tar_bytes=tar_bytes),
        )

    @property
    def is_finished(self) -> bool:
        """Whether the shard's rows of the sidecar are there, made from the stats and the tar that lie beside them."""
        job = self.check_job()
        return job is not None and data_store.brought(self.part.data, Path(job.out)) and job.is_done

    def renew(self) -> None:
        """Fetch anew what a worker has just sent to the address; in a folder it is there already."""
        if self.part.data.address is not None:
            rows = self.part.checked_tar(self.round, self.shard)
            for copy in (self.files.stats, rows):
                copy.unlink(missing_ok=True)
            data_store.bring(self.part.data, rows)

    def result(self) -> ShardResult:
        """Return what has become of the shard, by its rows of the sidecar, which have to be there."""
        table = table_of(self.part.checked_tar(self.round, self.shard), ["status", "length"])
        counts = {row["values"]: row["counts"] for row in pc.value_counts(table["status"]).to_pylist()}
        usable = table.filter(pc.equal(table["status"], Reason.OK))
        return ShardResult(Counter(counts), pc.sum(usable["length"]).as_py() or 0)


@dataclass(frozen=True)
class ShardResult:
    """What has become of a shard, or of as much of it as is done.

    Attributes:
        statuses: how many samples came to each end; see `reasons`.
        bytes: of the usable pictures, as they are stored.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def samples(self) -> int:
        """How many samples are counted."""
        return sum(self.statuses.values())


Report = Callable[[ShardResult], None]


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made.

    Attributes:
        place: which one, and where.
        index: the part's index; opened by whoever runs the task.
        options: how pictures are kept.
        limits: how they are fetched.
        left_out: positions in the shard of samples that are not looked at, since they kill processes.
        held: positions of samples that a tar of another round has: whoever reads all tars is to find them once.
        lacks: download rows that the index has lost.
        probe: only these samples are fetched and decoded, and nothing is written, to see whether they kill the process.
    """

    place: ShardPlace
    index: IndexPart
    options: DownloadOptions
    limits: FetchLimits
    left_out: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    lacks: tuple[int, ...] = ()
    probe: Span | None = None

    def run(self, report: Report) -> ShardResult:
        """Make the shard with `shard_worker`, which is imported only here, since it is heavy."""
        # OpenCV reads its own bound when it is imported; what it decodes has been checked against ours before.
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(self.options.fetch.max_pixels)
        from laion_face_builder.download.shard_worker import make_shard

        return make_shard(self, report)
