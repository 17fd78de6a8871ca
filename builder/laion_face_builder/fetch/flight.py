"""One step of a fetch with all that it takes: the cache, the network, the check. Who may start is decided elsewhere."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import policy
from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.exchange import Exchanges
from laion_face_builder.fetch.job import FetchedPicture, Job
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import Resolver
from laion_face_builder.fetch.policy import Again
from laion_face_builder.images import pictures, quick_check

#: Threads for what would hold up the loop: pictures that need a full decode, and the cache's files.
_HELPERS = 2
_LONGEST_LOOKUP = 10.0


class Flights:
    """Takes jobs a step further; belongs to the running event loop. `close` it when done.

    Args:
        limits: the bounds of every fetch.
        cache: pictures of earlier epochs.
    """

    def __init__(self, limits: FetchLimits, cache: PictureCache | None) -> None:
        self._limits, self._cache = limits, cache
        self._loop = asyncio.get_running_loop()
        patience = min(_LONGEST_LOOKUP, limits.timeout / (1 + limits.retries))
        self._resolver = Resolver(allow=limits.allow, timeout=patience)
        self._exchanges = Exchanges(limits, self._resolver)
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="laion-face-check")

    async def advance(self, job: Job) -> FetchedPicture | Again:
        """The picture out of the cache or out of one exchange, or what is to be done next.

        Raises:
            PictureError: there will be no picture.
        """
        if self._cache is not None and not job.course.has_begun:
            kept = await self._loop.run_in_executor(self._helpers, self._from_cache, job.course.origin)
            if kept is not None:
                job.grow(len(kept.data))
                return kept
        job.course.has_begun = True
        found = await self._exchange(job)
        return found if isinstance(found, Again) else await self._checked(job, found)

    def close(self) -> None:
        """Ends every connection and the helpers; nobody may be waiting any more."""
        self._exchanges.close()
        self._resolver.close()
        self._helpers.shutdown(wait=True, cancel_futures=True)

    def before_fork(self) -> None:
        """As `CurlLoop.before_fork`."""
        self._exchanges.before_fork()

    def inherited(self) -> list[object]:
        """For a forked child: what must never be freed there."""
        return [self, *self._exchanges.inherited()]

    async def _exchange(self, job: Job) -> bytes | Again:
        course, began, job.paused_for = job.course, time.monotonic(), 0.0
        if (seconds := course.share(self._limits)) <= 0:
            raise PictureError("timeout", f"{self._limits.timeout:g} s are over")
        try:
            answer = await self._exchanges.get(course.url, job.host, job.port, seconds, job)
        except PictureError as error:
            job.queue.learn(job.size)
            job.trouble = error.reason
            course.spent += time.monotonic() - began - job.paused_for
            return policy.after_failure(course, error, self._limits)
        course.spent += time.monotonic() - began - job.paused_for
        return policy.after_answer(course, answer, self._limits)

    async def _checked(self, job: Job, data: bytes) -> FetchedPicture:
        picture = quick_check.quick(data, max_pixels=self._limits.max_pixels)
        if picture is None:
            picture = await self._loop.run_in_executor(self._helpers, self._inspect, data)
        job.grow(len(data) - job.size)  # it may have come packed
        job.queue.learn(len(data))
        if self._cache is not None:
            await self._loop.run_in_executor(self._helpers, self._cache.put, job.course.origin, picture)
        return FetchedPicture(picture)

    def _inspect(self, data: bytes) -> pictures.Picture:
        return pictures.inspect(data, max_pixels=self._limits.max_pixels)

    def _from_cache(self, url: str) -> FetchedPicture | None:
        kept = self._cache.get(url) if self._cache is not None else None
        limits = self._limits
        if kept is None or len(kept.data) > limits.max_bytes or kept.width * kept.height > limits.max_pixels:
            return None
        return FetchedPicture(kept, is_kept=True)
