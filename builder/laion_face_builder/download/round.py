"""One round of a part: its shards, which of them are finished, and the workers that make the others.

A shard is finished once its rows of the sidecar are there, made from the stats and the tar that lie beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from laion_face_builder import progress
from laion_face_builder.download.options import DownloadOptions
from laion_face_builder.download.rounds import PartFiles, Rows, rows_of_round
from laion_face_builder.download.shard_work import ShardWork, Sight
from laion_face_builder.download.shards import remove_half_written, remove_unfinished, shard_sizes
from laion_face_builder.download.sidecar import CheckedTar, rows_held
from laion_face_builder.download.task import ShardPlace, ShardTask
from laion_face_builder.download.workers import Workers
from laion_face_builder.files import Fingerprint, digest
from laion_face_builder.index.reader import IndexPart

#: Shards that a worker has at a time: while the last pictures of one come, the next one is asked for.
_AT_A_TIME = 2


class Round:
    """One round; `run` ends when all of its shards are finished.

    Args:
        files: of the part.
        number: 0, or that of the retry.
        rows: the index rows that it fetches, ascending.
        options: how.
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
        self._finished = {place.shard for place in self._places if _is_finished(place)}

    @property
    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [place.shard for place in self._places if place.shard not in self._finished]

    @property
    def unchecked(self) -> list[int]:
        """Those of the missing ones whose files are all there: they are looked through, and fetched if they are bad."""
        return [shard for shard in self.missing if self._places[shard].check_job() is not None]

    def samples_of(self, shards: Iterable[int]) -> int:
        """How many samples some shards have."""
        return sum(self._places[shard].samples for shard in shards)

    @property
    def missing_samples(self) -> int:
        """The samples in them."""
        return self.samples_of(self.missing)

    @property
    def samples_to_fetch(self) -> int:
        """Those of shards whose files are not all there."""
        return self.samples_of({*self.missing} - {*self.unchecked})

    def missing_tars(self) -> list[str]:
        """Their tars, as the sidecar names them."""
        return [self._files.tar_name(self._number, shard) for shard in self.missing]

    def tars(self) -> list[CheckedTar]:
        """The tars of the finished shards."""
        return [
            CheckedTar(self._files.tar_name(self._number, shard), self._files.checked_tar(self._number, shard))
            for shard in sorted(self._finished)
        ]

    def run(self, index: IndexPart) -> None:
        """Makes what is missing, but for the pictures that tars of other rounds have.

        Raises:
            DownloadError: workers died again and again, and it was no sample's doing; NetworkOutage: no host answers.
            OSError: a shard cannot be written.
        """
        missing = self.missing
        count = min(self._options.processes_count, len(missing))
        limits, held = self._options.limits(count), self._rows_elsewhere()
        tasks = [
            ShardTask(self._places[shard], index, self._options, limits, held=self._positions(shard, held))
            for shard in missing
        ]
        is_far = "://" in index.address
        workers: Workers[ShardTask] = Workers(count, _AT_A_TIME, lock=self._files.writers, keeps_token=is_far)
        with workers, self._bar() as bar:
            # Not before the workers of an earlier run have gone, which `workers` waits for.
            remove_unfinished(self._files.tars(self._number), {*self._finished, *self.unchecked})
            self._files.tars(self._number).mkdir(parents=True, exist_ok=True)
            sight = Sight(bar, [place for place in self._places if place.shard in self._finished])
            for shard in ShardWork(tasks, workers, sight).finished():
                self._finished.add(shard)
        # A worker that was killed leaves its shard, and whoever reads every .tar below the folder would find it.
        remove_half_written(self._files.tars(self._number))

    def _rows_elsewhere(self) -> Rows:
        """The index rows that other rounds have: a shard may be lost once a later one has got what it had not."""
        others = (other for other in range(self._files.rounds_started() + 1) if other != self._number)
        rounds = (Round(self._files, other, rows_of_round(self._files, other), *self._how) for other in others)
        return rows_held([tar for other in rounds for tar in other.tars()])

    def _positions(self, shard: int, wanted: Rows) -> tuple[int, ...]:
        """Where in a shard some index rows stand."""
        place = self._places[shard]
        rows = self._rows[place.start : place.start + place.samples]
        return tuple(np.flatnonzero(np.isin(rows, wanted)).tolist())

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        name = f"part {self._files.part:05d}" + (f" retry {self._number}" if self._number else "")
        done = len(self._rows) - self.missing_samples
        with progress.bar(name, len(self._rows), "picture", done=done) as bar:
            yield bar


def _is_finished(place: ShardPlace) -> bool:
    job = place.check_job()
    return job is not None and job.is_done
