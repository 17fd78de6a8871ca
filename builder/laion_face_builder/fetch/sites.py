"""Sites' rules: what is known of each, who waits for them, and the errands that get them.

A site is a scheme, a host and a port; each has rules of its own, a picture's redirect to another site too. One errand
asks for the rules of a site, however many of its pictures come; it is sent as soon as the first of them is read, with
places in flight of its own, so that pictures seldom wait for it. Those that do hold nothing meanwhile; but if too many
sites are waited for, later pictures stay in their queue: else all that wait for a site would start at once, far from
their turn, and each with a connection of its own.

Rules are kept for a day, the longest that RFC 9309 allows, by all fetchers of this process that go by the same name;
those of a site that could not be asked for a minute, so that a host that is down is asked once, not by each picture.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from laion_face_builder.fetch.errand import Errand, Page
from laion_face_builder.fetch.job import Ending, Job, JobState
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.site_rules import SiteRules
from laion_face_builder.fetch.stream_queue import StreamQueue

#: How long rules are known, seconds; and that there are none to be had.
_KNOWN_SECONDS, _UNKNOWN_SECONDS = 86_400.0, 60.0
#: Sites that pictures may wait for at a time, for each place in flight: some are silent, and take long to be given up.
_WAITED_FOR = 2
#: Of rules that are remembered, bytes: those of a hundred thousand sites.
_REMEMBERED_BYTES = 64_000_000


class SiteMemory:
    """The rules of sites, as far as they were used lately. Any thread may use it. Times are `time.monotonic`'s.

    Args:
        max_bytes: that all rules may take together.
    """

    def __init__(self, max_bytes: int = _REMEMBERED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._known: OrderedDict[str, tuple[SiteRules, float]] = OrderedDict()
        self._lock = threading.Lock()
        #: Of all rules here.
        self.size = 0

    def get(self, site: str, now: float) -> SiteRules | None:
        """Return the rules of a site; None if they are not known, or not any more."""
        with self._lock:
            if (found := self._known.get(site)) is None:
                return None
            rules, until = found
            if now >= until:
                self._forget(site)
                return None
            self._known.move_to_end(site)
            return rules

    def put(self, site: str, rules: SiteRules, now: float) -> None:
        """Keep the rules of a site; those that were not used for longest go."""
        until = now + (_KNOWN_SECONDS if rules.closed is None else _UNKNOWN_SECONDS)
        with self._lock:
            self._forget(site)
            self._known[site] = rules, until
            self.size += rules.size
            while self.size > self._max_bytes and len(self._known) > 1:
                self._forget(next(iter(self._known)))

    def _forget(self, site: str) -> None:
        if (found := self._known.pop(site, None)) is not None:
            self.size -= found[0].size


#: By what decides which rules there are for us.
_MEMORIES: dict[tuple[object, ...], SiteMemory] = {}


def memory_of(limits: FetchLimits) -> SiteMemory:
    """Return the process's memory for fetchers with these limits."""
    key = limits.user_agent, limits.options.respect, limits.allow, limits.proxy
    return _MEMORIES.setdefault(key, SiteMemory())


if hasattr(os, "register_at_fork"):
    # A lock may be taken in the parent just then.
    os.register_at_fork(after_in_child=_MEMORIES.clear)


class Sites:
    """Gives each picture its site's rules; for the scheduler's thread.

    Args:
        limits: the bounds; they say whether sites are asked at all, and for what.
        start: takes a new errand, which then is in `errands` until its turn.
        resume: takes pictures back that waited for rules.
        clock: `time.monotonic`.
    """

    def __init__(
        self,
        limits: FetchLimits,
        start: Callable[[Errand], None],
        resume: Callable[[Sequence[Job]], None],
        clock: Callable[[], float],
    ) -> None:
        self._pages = (Page.ROBOTS, Page.RESERVATIONS) if limits.asks_reservations else (Page.ROBOTS,)
        self._start, self._resume, self._clock = start, resume, clock
        self._memory = memory_of(limits) if limits.asks_sites else None
        self._most_waited_for = _WAITED_FOR * limits.options.concurrency
        self._under_way: dict[str, Errand] = {}
        self._waited_for = 0
        #: The errands that wait for their turn; nobody takes what they bring, so nothing bounds it.
        self.errands = StreamQueue(_nothing, _nothing, _nothing)

    @property
    def is_crowded(self) -> bool:
        """Whether pictures wait for as many sites as they may."""
        return self._waited_for >= self._most_waited_for

    def foresee(self, job: Job) -> None:
        """Have the rules ready that a picture will need."""
        if self._memory is not None and self._known(job) is None:
            self._errand(job)

    def allows(self, job: Job) -> bool:
        """Say whether a picture may be asked for now; if not, it waits until `resume`.

        Raises:
            PictureError: its site forbids it.
        """
        if self._memory is None or isinstance(job, Errand):
            return True
        rules = self._known(job)
        if rules is None:
            job.state = JobState.HELD
            self._errand(job, waits=True)
            return False
        if (refusal := rules.refusal(job.progress.url)) is not None:
            raise refusal
        return True

    def _known(self, job: Job) -> SiteRules | None:
        return None if self._memory is None else self._memory.get(_site(job.progress.url), self._clock())

    def _errand(self, job: Job, *, waits: bool = False) -> None:
        site = _site(job.progress.url)
        errand = self._under_way.get(site)
        is_new = errand is None
        if errand is None:
            errand = self._under_way[site] = Errand(self.errands, job, site, self._pages, self._told)
        errand.wanted.append(job)
        if waits:
            self._waited_for += not errand.held
            errand.held.append(job)
        if is_new:
            self._start(errand)

    def _told(self, errand: Errand, ending: Ending) -> None:
        del self._under_way[errand.site]
        self._waited_for -= bool(errand.held)
        if isinstance(ending, SiteRules) and self._memory is not None:
            self._memory.put(errand.site, ending, self._clock())
            # Redirected to another site's own file: that site need not be asked again.
            site = _site(errand.progress.url)
            if len(self._pages) == 1 and ending.closed is None and errand.progress.url == f"{site}{Page.ROBOTS.value}":
                self._memory.put(site, ending, self._clock())
            self._resume([job for job in errand.held if job.open])


def _site(url: str) -> str:
    """Return an address as a `WebAddress` has it up to its path."""
    return url[: url.index("/", 8)]


def _nothing(*_: object) -> None:
    pass
