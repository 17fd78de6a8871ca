"""Run one round of a part: its shards, which of them are finished, and the workers that make the others.

A shard is finished once its rows of the sidecar are there, made from the stats and the tar that lie beside them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from laion_face_builder import progress
from laion_face_builder.download.cluster import Cluster
from laion_face_builder.download.options import DownloadOptions
from laion_face_builder.download.rounds import PartFiles, Rows, rows_of_round
from laion_face_builder.download.shard_work import Crew, ShardWork, Sight
from laion_face_builder.download.shards import remove_half_written, remove_unfinished, shard_sizes
from laion_face_builder.download.sidecar import CheckedTar, rows_held
from laion_face_builder.download.task import ShardPlace, ShardResult, ShardTask
from laion_face_builder.download.workers import Workers
from laion_face_builder.files import Fingerprint, digest
from laion_face_builder.index.reader import IndexPart

#: Shards that a worker has at a time: while the last pictures of one come, the next one is asked for.
_AT_A_TIME = 2


class Round:
    """One round; `run` ends when all of its shards are finished.

    Args:
        files: of the part.
        number: 0 for the first round, else the number of the retry.
        rows: the index rows that it fetches, ascending.
        options: how it downloads.
        made_with: the fingerprint of the part's downloads.
    """

    def __init__(
        self, files: PartFiles, number: int, rows: Rows, options: DownloadOptions, made_with: Fingerprint
    ) -> None:
        self._files = files
        self._number = number
        self._rows = rows
        self._options = options
        self._how = options, made_with
        images, each = digest(made_with), options.samples_per_shard
        sizes = shard_sizes(len(rows), each)
        self._places = [
            ShardPlace(files, images, number, shard, shard * each, size, options.max_pixels)
            for shard, size in enumerate(sizes)
        ]
        self._finished = {place.shard for place in self._places if place.is_finished}

    @property
    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [place.shard for place in self._places if place.shard not in self._finished]

    def missing_of(self, share: Container[int] | None) -> list[int]:
        """Return the missing shards of a share; all of them if `share` is None."""
        return [shard for shard in self.missing if share is None or shard in share]

    @property
    def unchecked(self) -> list[int]:
        """The missing shards whose files are all there: they are checked, and fetched if they are bad."""
        return [shard for shard in self.missing if self._places[shard].check_job() is not None]

    def samples_of(self, shards: Iterable[int]) -> int:
        """Count the samples of some shards."""
        return sum(self._places[shard].samples for shard in shards)

    @property
    def missing_samples(self) -> int:
        """The number of samples in the missing shards."""
        return self.samples_of(self.missing)

    @property
    def samples_to_fetch(self) -> int:
        """The number of samples in shards whose files are not all there."""
        return self.samples_of({*self.missing} - {*self.unchecked})

    def missing_tars(self, share: Container[int] | None = None) -> list[str]:
        """Name the tars of the missing shards, as the sidecar does."""
        return [self._files.tar_name(self._number, shard) for shard in self.missing_of(share)]

    def results(self, share: Container[int] | None = None) -> list[ShardResult]:
        """Return what has become of each finished shard."""
        return [place.result() for place in self._finished_of(share)]

    def tars(self) -> list[CheckedTar]:
        """Return the tars of the finished shards."""
        return [
            CheckedTar(self._files.tar_name(self._number, shard), self._files.checked_tar(self._number, shard))
            for shard in sorted(self._finished)
        ]

    def run(self, index: IndexPart, share: Container[int] | None = None) -> None:
        """Make the missing shards, without the pictures that tars of other rounds have.

        Args:
            share: the shards to make; other processes may make the others meanwhile. None means all shards.

        Raises:
            DownloadError: workers died again and again, and no sample is to blame; NetworkOutage: no host answers.
            OSError: a shard cannot be written.
        """
        missing, folder = self.missing_of(share), self._files.tars(self._number)
        if not missing:
            return
        count = min(self._options.processes, len(missing))
        limits = self._options.limits(1 if self._options.is_on_cluster else count)
        held = self._rows_elsewhere()
        tasks = [
            ShardTask(self._places[shard], index, self._options, limits, held=self._positions(shard, held))
            for shard in missing
        ]
        with self._crew(count, index, is_shared=share is not None) as workers, self._bar(share) as bar:
            # Not before the workers of an earlier run have gone, which `workers` waits for.
            remove_unfinished(folder, {*self._finished, *self.unchecked}, share)
            folder.mkdir(parents=True, exist_ok=True)
            sight = Sight(bar, self._finished_of(share))
            for shard in ShardWork(tasks, workers, sight).finished():
                self._places[shard].renew()
                self._finished.add(shard)
        # A worker that was killed leaves its shard, and whoever reads every .tar below the folder would find it.
        remove_half_written(folder, share)

    def _finished_of(self, share: Container[int] | None) -> list[ShardPlace]:
        shards = (shard for shard in sorted(self._finished) if share is None or shard in share)
        return [self._places[shard] for shard in shards]

    def _crew(self, count: int, index: IndexPart, *, is_shared: bool) -> Crew:
        if self._options.is_on_cluster:
            return Cluster(self._options.distributor, self._options.processes_count)
        is_far = "://" in index.address
        return Workers(count, _AT_A_TIME, lock=self._files.writers, shares_lock=is_shared, keeps_token=is_far)

    def _rows_elsewhere(self) -> Rows:
        """Return the index rows that other rounds have pictures of: a shard that is made again must not repeat them."""
        others = (other for other in range(self._files.rounds_started() + 1) if other != self._number)
        rounds = (Round(self._files, other, rows_of_round(self._files, other), *self._how) for other in others)
        return rows_held([tar for other in rounds for tar in other.tars()])

    def _positions(self, shard: int, wanted: Rows) -> tuple[int, ...]:
        """Return the positions in a shard of the index rows that are in `wanted`."""
        place = self._places[shard]
        rows = self._rows[place.start : place.start + place.samples]
        return tuple(np.flatnonzero(np.isin(rows, wanted)).tolist())

    @contextmanager
    def _bar(self, share: Container[int] | None) -> Iterator[Any]:
        name = f"part {self._files.part:05d}" + (f" retry {self._number}" if self._number else "")
        name += "" if share is None else f" shards {share}"
        done = sum(place.samples for place in self._finished_of(share))
        with progress.bar(name, done + self.samples_of(self.missing_of(share)), "picture", done=done) as bar:
            yield bar
