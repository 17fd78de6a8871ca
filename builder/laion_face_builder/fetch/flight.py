"""One step of a fetch: a look into the cache, or an exchange with a host and the check of its picture.

Which fetch may start, and when, is decided elsewhere (`scheduler`).
"""

from __future__ import annotations

import asyncio
import copy
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import open_files, policy
from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.curl import Exchanges
from laion_face_builder.fetch.errand import Errand
from laion_face_builder.fetch.hosts import Contact
from laion_face_builder.fetch.http import Response
from laion_face_builder.fetch.job import Ending, Job
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import NoAnswer, Resolver
from laion_face_builder.fetch.open_files import NoFiles
from laion_face_builder.fetch.policy import FetchProgress, Retry, Throttled
from laion_face_builder.fetch.site_rules import MOST_BYTES, SiteRules
from laion_face_builder.images import jpeg, pictures
from laion_face_builder.images.reasons import Reason, Whose, http

#: Threads each for what would hold up the loop: pictures that need a full decode, and the cache's files.
_HELPERS = 2
#: Pages of rules that are read in a millisecond or two.
_QUICK_BYTES = 16_000
_LONGEST_LOOKUP = 10.0
_LOOKUP_PAUSE = 0.5


#: Failures in which nobody says anything.
_SILENCE = frozenset({Reason.TIMEOUT, Reason.UNREACHABLE})
#: Failures in which nobody was asked.
_OURS = frozenset(reason for reason in Reason if reason.whose is Whose.OURS)


@dataclass(frozen=True, slots=True)
class Landing:
    """How one step of a job ended.

    Attributes:
        step: what comes next, or how the job ends.
        contact: what the step showed of the host.
        began: when the host was asked, by `time.monotonic`.
        reason: why the host gave no picture.
        wait: seconds that the host asks us to stay away.
        is_heard: whether a host or a name server said anything.
        before: how far the fetch had come before a step that failed.
    """

    step: Ending | Retry | Throttled
    contact: Contact = Contact.NONE
    began: float = 0.0
    reason: str = ""
    wait: float = 0.0
    is_heard: bool = False
    before: FetchProgress | None = None


class Flights:
    """Takes jobs a step further; belongs to the running event loop. `close` it when done.

    Args:
        limits: the bounds of every fetch.
        cache: pictures of earlier epochs.
    """

    def __init__(self, limits: FetchLimits, cache: PictureCache | None) -> None:
        self._limits, self._cache = limits, cache
        self._loop = asyncio.get_running_loop()
        patience = min(_LONGEST_LOOKUP, limits.options.timeout / (1 + limits.options.retries))
        self._resolver = Resolver(allow=limits.allow, timeout=patience)
        self._exchanges = Exchanges(limits, self._resolver)
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="laion-face-check")
        self._cache_threads = ThreadPoolExecutor(_HELPERS, thread_name_prefix="laion-face-cache")

    @property
    def has_cache(self) -> bool:
        """Whether there is a cache with pictures of earlier epochs."""
        return self._cache is not None

    async def look_in_cache(self, job: Job) -> Landing:
        """Look for the picture in the cache; if it is not there, the network is the next step."""
        job.progress.has_begun = True
        try:
            kept = await self._loop.run_in_executor(self._cache_threads, self._from_cache, job.progress.origin)
        except PictureError as error:
            return Landing(error)
        if kept is None:
            return Landing(Retry(job.progress.origin))
        job.grow(len(kept.data))
        return Landing(kept)

    def knows(self, host: str) -> bool:
        """Say whether nobody needs to look `host` up."""
        return self._limits.proxy is not None or self._resolver.knows(host)

    async def look_up(self, host: str, port: int) -> PictureError | None:
        """Have the host's addresses ready, or return why there are none. A lost answer is asked for again."""
        for left in range(self._limits.options.retries, -1, -1):
            try:
                await self._resolver.resolve(host, port)
            except NoAnswer as error:
                if not left:
                    return error
                await asyncio.sleep(min(_LOOKUP_PAUSE, self._limits.options.timeout / 10))
            except PictureError as error:
                return error
            else:
                break
        return None

    async def exchange(self, job: Job) -> Landing:
        """Ask the host once, and check what it gives."""
        progress, began, job.waited = job.progress, time.monotonic(), 0.0
        if (seconds := progress.share(self._limits)) <= 0:
            return Landing(PictureError(Reason.TIMEOUT, f"{self._limits.options.timeout:g} s are over"))
        before = copy.copy(progress)
        try:
            return await self._exchange(job, seconds, began)
        except (NoFiles, OSError) as error:
            if not (isinstance(error, NoFiles) or open_files.are_gone(error)):
                raise
            return Landing(NoFiles(), Contact.NONE, began, before=before)

    async def _exchange(self, job: Job, seconds: float, began: float) -> Landing:
        progress = job.progress
        start_of = MOST_BYTES if isinstance(job, Errand) else None
        try:
            answer = await self._exchanges.get(progress.url, job.host, job.port, seconds, job, start_of=start_of)
        except NoFiles:
            raise
        except PictureError as error:
            return self._failed(job, error, began)
        contact = Contact.THROTTLED if answer.status in policy.THROTTLING else Contact.ANSWERED
        now = time.monotonic()
        progress.spent += now - began - job.waited
        try:
            step = await self._taken(job, answer, now)
        except PictureError as error:
            return Landing(error, contact, began, error.reason, is_heard=True)
        wait = step.pause if isinstance(step, Throttled) else 0.0
        return Landing(step, contact, began, http(answer.status), wait, is_heard=True)

    async def _taken(self, job: Job, answer: Response, now: float) -> Ending | Retry | Throttled:
        if isinstance(job, Errand):
            page = job.after_answer(answer, self._limits, now)
            return job.go_on_with(await self._read(job, page)) if isinstance(page, bytes) else page
        found = policy.after_answer(job.progress, answer, self._limits, now)
        return await self._checked(job, found) if isinstance(found, bytes) else found

    async def _read(self, errand: Errand, page: bytes) -> SiteRules:
        name = self._limits.user_agent_token
        if len(page) <= _QUICK_BYTES:
            return errand.read(page, name)
        return await self._loop.run_in_executor(self._helpers, errand.read, page, name)

    async def reaches(self, host: str, port: int) -> bool:
        """Say whether anybody answers at `host`, be it with a refusal; ask for a connection and nothing else."""
        try:
            addresses = await self._resolver.resolve(host, port)
            opening = asyncio.open_connection(addresses[0], port)
            _, writer = await asyncio.wait_for(opening, self._limits.connect_seconds)
        except ConnectionRefusedError:
            return True
        except (PictureError, OSError, asyncio.TimeoutError):
            return False
        writer.close()
        return True

    def close(self) -> None:
        """End every connection and the helper threads; nobody may be waiting any more."""
        self._exchanges.close()
        self._resolver.close()
        self._helpers.shutdown(wait=True, cancel_futures=True)
        self._cache_threads.shutdown(wait=True, cancel_futures=True)

    def before_fork(self) -> None:
        """Prepare for a fork, as `CurlLoop.before_fork`."""
        self._exchanges.before_fork()

    def inherited(self) -> list[object]:
        """Return what a forked child must never free."""
        return [self, *self._exchanges.inherited()]

    def _failed(self, job: Job, error: PictureError, began: float) -> Landing:
        if not isinstance(job, Errand):
            job.queue.learn(job.size)
        before = copy.copy(job.progress)
        job.progress.spent += time.monotonic() - began - job.waited
        is_silent = error.reason in _SILENCE or isinstance(error, NoAnswer)
        contact = Contact.SILENT if is_silent else Contact.NONE
        is_heard = job.size > 0 if is_silent else error.reason not in _OURS
        step: PictureError | Retry = error
        with suppress(PictureError):
            step = policy.after_failure(job.progress, error, self._limits)
        return Landing(step, contact, began, error.reason, is_heard=is_heard, before=before)

    async def _checked(self, job: Job, data: bytes) -> pictures.Picture:
        options = self._limits.options
        picture = None if options.isolate_decoder else jpeg.quick(data, max_pixels=options.max_pixels)
        if picture is None:
            picture = await self._loop.run_in_executor(self._helpers, self._inspect, data)
        job.grow(len(data) - job.size)  # it may have come packed
        job.queue.learn(len(data))
        if self._cache is not None:
            await self._loop.run_in_executor(self._cache_threads, self._cache.put, job.progress.origin, picture)
        return picture

    def _inspect(self, data: bytes) -> pictures.Picture:
        return pictures.inspect(data, max_pixels=self._limits.options.max_pixels)

    def _from_cache(self, url: str) -> pictures.Picture | None:
        kept = self._cache.get(url) if self._cache is not None else None
        most = self._limits.options
        if kept is None or len(kept.data) > most.max_bytes or kept.width * kept.height > most.max_pixels:
            return None
        if most.isolate_decoder:  # it may have been kept without
            self._inspect(kept.data)
        return replace(kept, is_kept=True)
