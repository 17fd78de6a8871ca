"""Have workers make a round's shards: hand them out, try again what failed, show the progress."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from laion_face_builder.download.attempts import Attempts
from laion_face_builder.download.cluster import Cluster
from laion_face_builder.download.task import ShardPlace, ShardResult, ShardTask
from laion_face_builder.download.workers import Died, Done, Event, Failed, Workers
from laion_face_builder.errors import DownloadError
from laion_face_builder.files import human_size
from laion_face_builder.images import reasons

logger = logging.getLogger("laion_face")

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
        good = failures.pop(reasons.OK, 0)
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
        self._workers, self._sight = workers, sight

    def finished(self) -> Iterator[int]:
        """Make all shards; yield the number of each when it is finished.

        Raises:
            DownloadError: processes go on dying, and no sample is to blame; NetworkOutage: no host answers.
            OSError: a shard cannot be written.
        """
        while self._waiting or self._suspects or self._workers.is_busy:
            self._start()
            for event in self._workers.events(_POLL_SECONDS):
                if self._is_finished_by(event):
                    yield event.call.place.shard
            self._sight.tick()

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
        self._require_hope(shard)
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

    def _require_hope(self, shard: int) -> None:
        if self._attempts[shard].is_hopeless:
            raise DownloadError(
                f"{self._tasks[shard].place.files.tar}: the processes that make it go on dying, and no sample is what "
                "ends them. Is there enough memory? Run the same command to go on, with fewer --processes."
            )
