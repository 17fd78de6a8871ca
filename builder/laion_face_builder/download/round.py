"""Run one round of a part: its shards, which of them are finished, and the workers that make the others.

A shard is finished once its rows of the sidecar are there, made from the stats and the tar that lie beside them.
Workers are handed one after the other, and what failed is tried again.

A process may die for reasons of its own: somebody killed it, memory ran out, its other shard did it. So a shard whose
process died is tried again by itself. If that dies too, halves of it are fetched and decoded without being written,
until the one sample is found; the shard is then made without it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from laion_face_builder import progress
from laion_face_builder.download.cluster import Cluster
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.numbering import Numbering
from laion_face_builder.download.plan import PartFiles, Rows, rows_of_round
from laion_face_builder.download.shard_files import remove_half_written, remove_unfinished, shard_sizes
from laion_face_builder.download.sidecar import CheckedTar, rows_with
from laion_face_builder.download.task import ShardPlace, ShardResult, ShardTask, Span
from laion_face_builder.download.workers import Died, Done, Event, Failed, Workers
from laion_face_builder.errors import ShardsGivenUp
from laion_face_builder.files import Fingerprint, digest, human_size
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.log import logger

#: Searches without a result, after which a shard is given up.
_MOST_VAIN = 3


class Stage(Enum):
    """How a shard is tried."""

    TOGETHER = "beside another shard"
    ALONE = "by itself"
    HALVING = "in halves"


@dataclass
class Attempts:
    """The tries of one shard: those so far, and the next one.

    Attributes:
        samples: of the shard.
        stage: how it is tried next.
        left_out: positions of the samples that were found, and are left out.
        is_hopeless: whether processes go on dying, and no sample is found that kills them.
    """

    samples: int
    stage: Stage = Stage.TOGETHER
    left_out: list[int] = field(default_factory=list)
    _span: Span = (0, 0)
    _vain: int = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether processes go on dying, and no sample is found that kills them."""
        return self._vain >= _MOST_VAIN

    @property
    def probe(self) -> Span | None:
        """The samples to be tried next; None for the whole shard."""
        if self.stage is not Stage.HALVING:
            return None
        start, stop = self._span
        return (start, max(start + 1, (start + stop) // 2))

    def died(self) -> None:
        """Note that the process of the last try died."""
        probe = self.probe
        if self.stage is Stage.TOGETHER:
            self.stage = Stage.ALONE
        elif probe is None:
            self.stage, self._span = Stage.HALVING, (0, self.samples)
        elif probe[1] - probe[0] == 1:
            self.left_out.append(probe[0])
            self.stage = Stage.ALONE
        else:
            self._span = probe

    def survived(self) -> None:
        """Note that the process survived the probe: if any sample kills it, that is in the rest."""
        probe = self.probe
        assert probe is not None, "only probes are survived"  # noqa: S101 - a shard that is made is done
        self._span = (probe[1], self._span[1])
        if self._span[0] == self._span[1]:
            self._vain += 1
            self.stage = Stage.ALONE


_POLL_SECONDS = 0.5
_REASONS_SHOWN = 3
Crew = Workers[ShardTask] | Cluster[ShardTask]


class Sight:
    """Shows people what has become of a round's pictures.

    Args:
        bar: the progress bar, which counts pictures.
        finished: shards of earlier runs.
    """

    def __init__(self, bar: Any, finished: Sequence[ShardPlace]) -> None:
        self._bar = bar
        self._results = {place.shard: place.result() for place in finished}

    def tell(self, shard: int, result: ShardResult) -> None:
        """Show how far a shard is now."""
        self._results[shard] = result
        self._show()

    def forget(self, shard: int) -> None:
        """Forget a shard's pictures, which are lost."""
        self._results.pop(shard, None)
        self._show()

    def tick(self) -> None:
        """Let the bar notice that time passes."""
        self._bar.tick()

    def _show(self) -> None:
        failures: Counter[str] = Counter()
        for result in self._results.values():
            failures.update(result.statuses)
        done = failures.total()
        good = failures.pop(Reason.OK, 0)
        named = [f"{reason} {count:,}" for reason, count in failures.most_common(_REASONS_SHOWN)]
        size = human_size(sum(result.bytes for result in self._results.values()))
        self._bar.advance_to(done)
        self._bar.note(f"{good / max(done, 1):.1%} good", size, *named)


class ShardWork:
    """Has workers make shards, even if some of the workers die.

    Args:
        tasks: the shards.
        workers: make them.
        sight: is told how far they are.
    """

    def __init__(self, tasks: Sequence[ShardTask], workers: Crew, sight: Sight) -> None:
        self._tasks = {task.place.shard: task for task in tasks}
        self._attempts = {task.place.shard: Attempts(task.place.samples) for task in tasks}
        self._waiting = deque(self._tasks)
        self._suspects: deque[int] = deque()
        self._given_up: list[int] = []
        self._workers, self._sight = workers, sight

    def finished(self) -> Iterator[int]:
        """Make all shards; yield the number of each when it is finished.

        Raises:
            ShardsGivenUp: processes go on dying, and no sample is to blame; all other shards are finished.
            NetworkOutage: no host answers.
            OSError: a shard cannot be written.
        """
        while self._waiting or self._suspects or self._workers.is_busy:
            self._start()
            for event in self._workers.events(_POLL_SECONDS):
                if self._is_finished_by(event):
                    yield event.call.place.shard
            self._sight.tick()
        if self._given_up:
            tars = ", ".join(str(self._tasks[shard].place.files.tar) for shard in sorted(self._given_up))
            raise ShardsGivenUp(
                f"{tars}: the processes that make it go on dying, and no sample is what ends them. Is there enough "
                "memory? Run the same command to go on, with fewer --processes."
            )

    def _start(self) -> None:
        while self._suspects and self._workers.has_place(alone=True):
            self._workers.start(self._next_try(self._suspects.popleft()), alone=True)
        # A suspect needs a worker that does nothing else: none would ever be free if each were given more.
        while self._waiting and not self._suspects and self._workers.has_place():
            self._workers.start(self._next_try(self._waiting.popleft()))

    def _next_try(self, shard: int) -> ShardTask:
        tried = self._attempts[shard]
        return replace(self._tasks[shard], left_out=tuple(tried.left_out), probe=tried.probe)

    def _is_finished_by(self, event: Event[ShardTask]) -> bool:
        task = event.call
        shard, is_probe = task.place.shard, task.probe is not None
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Died):
            self._mourn(shard, event.said)
        elif is_probe:
            if isinstance(event, Done):
                self._attempts[shard].survived()
                self._suspects.append(shard)
        else:
            self._sight.tell(shard, event.value)
        if self._attempts[shard].is_hopeless and shard in self._suspects:
            self._suspects.remove(shard)
            self._given_up.append(shard)
        return isinstance(event, Done) and not is_probe

    def _mourn(self, shard: int, said: str) -> None:
        tried = self._attempts[shard]
        known = len(tried.left_out)
        tried.died()
        self._suspects.append(shard)
        self._sight.forget(shard)
        place = self._tasks[shard].place
        if len(tried.left_out) > known:
            logger.warning(
                "%s: sample %d of it ends every process, and is left out", place.files.tar, tried.left_out[-1]
            )
        elif tried.probe is None:
            logger.warning("%s: its process ended (%s); it is made again", place.files.tar, said)


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
            ShardPlace(files, images, number, shard, shard * each, size, options.fetch.max_pixels)
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
            ShardsGivenUp, NetworkOutage: as `ShardWork.finished`.
            OSError: a shard cannot be written.
        """
        missing, folder = self.missing_of(share), self._files.tars(self._number)
        if not missing:
            return
        count = min(self._options.processes, len(missing))
        limits = self._options.limits(1 if self._options.is_on_cluster else count)
        held, lacks = self._rows_elsewhere(), tuple(Numbering.of(self._files, index).lacks.tolist())
        tasks = [
            ShardTask(self._places[shard], index, self._options, limits, (), self._positions(shard, held), lacks)
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
        return rows_with([tar for other in rounds for tar in other.tars()], Reason.OK)

    def _positions(self, shard: int, wanted: Rows) -> tuple[int, ...]:
        """Return the positions in a shard of the index rows that are in `wanted`."""
        place = self._places[shard]
        rows = self._rows[place.start : place.start + place.samples]
        return tuple(np.flatnonzero(np.isin(rows, wanted)).tolist())

    @contextmanager
    def _bar(self, share: Container[int] | None) -> Iterator[Any]:
        name = f"part {self._files.part}" + (f" retry {self._number}" if self._number else "")
        name += "" if share is None else f" shards {share}"
        done = sum(place.samples for place in self._finished_of(share))
        with progress.bar(name, done + self.samples_of(self.missing_of(share)), "picture", done=done) as bar:
            yield bar
