"""Whether the network works: telling a lost one, or a machine that slept, from pictures that are gone.

A quarter of LAION's pictures are gone, hosts and all, and that is the web. An outage is known by its breadth and its
silence: `BREADTH` hosts, all different, were asked, and meanwhile nobody at all has said anything. Anything counts: a
picture, a 404, a refused connection, a broken handshake, a name server's word that there is no such name (macOS says
that without a network too, so there it does not count). Silence is a connection that does not come about or brings no
byte in time, no way to the host, and a name that nobody answers for.

What failed while others were heard is the pictures' own affair, however much it is. And where breadth alone might
mislead, because only the dead ones of a list are left, a host that was heard before is asked once more.

Nothing here looks at a clock: times are handed in, in seconds.

Meanwhile jobs wait (`Vigil`), and lose neither a try nor time to an outage of our own. One that failed in silence is
kept back until somebody is heard (it did fail), until nothing else is under way that could tell (it did fail), or until
the network is lost: then it is as if it had not been asked.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NamedTuple, Protocol

from laion_face_builder.errors import NetworkOutage, PictureError
from laion_face_builder.fetch.flight import Landing
from laion_face_builder.fetch.hosts import Contact
from laion_face_builder.fetch.job import Ending, Job, JobState
from laion_face_builder.fetch.names import NoAnswer
from laion_face_builder.fetch.open_files import NoFiles, Shortage
from laion_face_builder.fetch.policy import FetchProgress, Retry, Throttled
from laion_face_builder.images.reasons import Reason
from laion_face_builder.log import logger

#: So many different hosts in silence. Of a healthy web's 3 in 10 are silent at most, and 8 in a row once in fifteen
#: thousand times; the next word from anybody ends it then.
BREADTH = 8
#: Whether "there is no such name" shows that there is a network.
UNKNOWN_NAMES_TELL = sys.platform != "darwin"
#: Hosts remembered that were heard, the latest.
_WITNESSES = 8
#: Seconds between two questions while the network is gone: twice as long each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
#: A clock that counts sleep may run ahead of the loop by so much.
_LATE = 3.0


class NetworkState(Enum):
    """What is known of the network."""

    WORKING = "somebody was heard, or too few were asked"
    DOUBTED = "nobody was heard: one that was heard before is asked"
    OUT = "it is lost: nothing is started but one question now and then"


class Network:
    """The network's state, kept from what is heard of every exchange; for one thread."""

    def __init__(self) -> None:
        self.state = NetworkState.WORKING
        self._heard_at = float("-inf")
        self._silent: set[str] = set()
        self._witnesses: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._pause = _FIRST_PAUSE
        self._awake_since = float("-inf")
        #: When the network was found to be lost, and when to ask next.
        self.out_since = self.asks_at = 0.0

    def heard(self, now: float, host: str = "", port: int = 0) -> None:
        """Take note that somebody said something: the network is there."""
        self._heard_at = now
        if host and (host, port) not in self._witnesses:
            self._witnesses[host, port] = None
            if len(self._witnesses) > _WITNESSES:
                self._witnesses.popitem(last=False)
        if self._silent or self.state is not NetworkState.WORKING:
            self._silent.clear()
            self._pause = _FIRST_PAUSE
            self.state = NetworkState.WORKING

    def is_unheard(self, began: float) -> bool:
        """Say whether nobody has said anything since `began`, so that a failure since then may be ours."""
        return began > self._heard_at

    def silent(self, host: str, now: float) -> None:
        """Take note that a host was asked, and since then nobody said anything."""
        self._silent.add(host)
        if self.state is NetworkState.OUT:
            self.asks_at = now + self._pause
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        elif self.state is NetworkState.WORKING and len(self._silent) >= BREADTH:
            self.state = NetworkState.DOUBTED

    @property
    def witnesses(self) -> list[tuple[str, int]]:
        """Hosts and ports that were heard lately, the latest first."""
        return list(reversed(self._witnesses))

    def lost(self, now: float) -> None:
        """Take the network as lost: the witnesses are silent too, or there are none."""
        self.state = NetworkState.OUT
        self.out_since = self.asks_at = now

    def slept(self, since: float, meant: float, now: float) -> bool:
        """Say whether the machine stood still: by a clock that counts sleep, more time has passed than was meant to.

        Args:
            since: seconds by that clock since it was looked at last.
            meant: seconds after which it was to be looked at.
            now: the time by the loop's clock.
        """
        if since - meant < _LATE:
            return False
        self._awake_since = now
        return True

    def was_asleep(self, began: float) -> bool:
        """Say whether the machine slept after `began`: what was under way then is lost, and nobody's fault."""
        return began < self._awake_since


#: Seconds between two looks at the clock that counts sleep.
_BEAT = 1.0
#: Hosts that are asked whether the network is lost. An answer within so many seconds says no; later, that it was.
_ASKED, _SOON = 3, 1.0
_SLEEP_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Doer(Protocol):
    """What the scheduler does for a vigil."""

    def go_on(self, job: Job, step: Ending | Retry | Throttled) -> None:
        """Take the job's next step."""

    def queue(self, job: Job) -> None:
        """Put the job into its stream's queue."""

    def schedule(self) -> None:
        """Start what may start."""

    def forgive_hosts(self) -> None:
        """Forget the hosts' silence."""

    def give_up(self, error: Callable[[], NetworkOutage]) -> None:
        """End all jobs there are."""


class _Kept(NamedTuple):
    job: Job
    before: FetchProgress | None
    step: Ending | Retry | Throttled


class Vigil:
    """Keeps jobs back while no host answers; for the scheduler's thread.

    Args:
        doer: the scheduler.
        reaches: whether a host can be connected to.
        patience: seconds that a lost network is waited for.
    """

    def __init__(self, doer: Doer, reaches: Callable[[str, int], Awaitable[bool]], patience: float) -> None:
        self._doer, self._reaches, self._patience = doer, reaches, patience
        self._loop = asyncio.get_running_loop()
        self._network = Network()
        self._shortage = Shortage(patience)
        self._kept: list[_Kept] = []
        self._stalled: deque[Job] = deque()
        self._doubted_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None
        self._looked_at = time.clock_gettime(_SLEEP_CLOCK)
        self._beat = self._loop.call_later(_BEAT, self._on_beat)

    def close(self) -> None:
        """End its timers and questions."""
        for handle in (self._beat, self._end, self._asking):
            if handle is not None:
                handle.cancel()

    @property
    def is_out(self) -> bool:
        """Whether the network is lost."""
        return self._network.state is NetworkState.OUT

    def may_start(self, count: Callable[[], int]) -> bool:
        """Say whether a job may be started: while the network is lost, only one now and then.

        Args:
            count: tells how many are under way.
        """
        if self._loop.time() < self._shortage.until:
            return False
        if self._network.state is NetworkState.WORKING:
            return True
        return self.is_out and not count() and self._loop.time() >= self._network.asks_at

    def next_stalled(self) -> bool:
        """Queue again one of the jobs that failed in silence, to be asked next; return False if there is none."""
        while self.is_out and self._stalled:
            job = self._stalled.popleft()
            if job.open:
                self._doer.queue(job)
                return True
        return False

    def keeps(self, job: Job, landing: Landing) -> bool:
        """Take note of an exchange, and say whether its job is kept back."""
        if isinstance(landing.step, NoFiles):
            self._run_short([_Kept(job, landing.before, landing.step)])
            return True
        kept = _Kept(job, landing.before, landing.step)
        if landing.before is not None and self._slept_since(landing.began):
            self._put_back([kept])
            return True
        if landing.is_heard:
            self._shortage.heard(landing.began)
            self._hear(job.host, job.port)
            return False
        return landing.contact is Contact.SILENT and self._keeps([kept], landing.began)

    def keeps_nameless(self, jobs: list[Job], error: PictureError | None, began: float) -> bool:
        """Take note of a look-up, and say whether the jobs that waited for it are kept back."""
        if error is None:
            return False
        if isinstance(error, NoFiles):
            self._run_short([_Kept(job, None, error) for job in jobs])
            return True
        if not isinstance(error, NoAnswer):
            if error.reason == Reason.DNS and UNKNOWN_NAMES_TELL:
                self._hear()
            return False
        return self._keeps([_Kept(job, None, error) for job in jobs], began)

    def nothing_under_way(self) -> None:
        """Let what failed in silence fail: nobody is left who could be heard."""
        if self._network.state is NetworkState.WORKING:
            self._go_on()

    def _hear(self, host: str = "", port: int = 0) -> None:
        now, was_out = self._loop.time(), self.is_out
        was_gone = self._network.state is NetworkState.DOUBTED and now - self._doubted_at > _SOON
        out_for = now - self._network.out_since
        self._network.heard(now, host, port)
        if was_out:
            logger.warning("the network is back after %.0f s; going on, nothing was lost", out_for)
            self._forget_end()
            while self._stalled:
                job = self._stalled.popleft()
                if job.open:
                    self._doer.queue(job)
        if was_gone:
            self._release()
        else:
            self._go_on()

    def _release(self) -> None:
        kept, self._kept = self._kept, []
        self._put_back(kept)

    def _put_back(self, kept: list[_Kept]) -> None:
        """Make these jobs as if they had not been asked, and have them asked."""
        for one in kept:
            self._undo(one)
            one.job.shrink()
            if one.job.open:
                self._doer.queue(one.job)

    def _run_short(self, kept: list[_Kept]) -> None:
        """Put jobs back for which no file was left in this process, or give up after too long."""
        self._put_back(kept)
        now = self._loop.time()
        self._shortage.met(now)
        if self._shortage.is_too_long(now):
            self._doer.give_up(
                lambda: NetworkOutage(
                    f"no file descriptor was left for outage_patience={self._patience:g} s. No picture was counted as "
                    "failed for it. `ulimit -n` says how many there are; a lower concurrency needs fewer"
                )
            )
        self._loop.call_at(self._shortage.until, self._doer.schedule)

    def _go_on(self) -> None:
        kept, self._kept = self._kept, []
        for one in kept:
            if one.job.open:
                self._doer.go_on(one.job, one.step)

    def _keeps(self, kept: list[_Kept], began: float) -> bool:
        now = self._loop.time()
        if not self._network.is_unheard(began):
            return False
        for one in kept:
            one.job.state = JobState.STALLED if one.job.open else JobState.ENDED
            one.job.shrink()
        self._kept += kept
        self._network.silent(kept[0].job.host, now)
        if self.is_out:
            self._stall()
        elif self._network.state is NetworkState.DOUBTED and self._asking is None:
            self._doubted_at = now
            self._asking = self._loop.create_task(self._ask())
        return True

    async def _ask(self) -> None:
        asked = [self._ask_one(host, port) for host, port in self._network.witnesses[:_ASKED]]
        await asyncio.gather(*asked)
        self._asking = None
        if self._network.state is NetworkState.DOUBTED:
            self._lose()
        self._doer.schedule()

    async def _ask_one(self, host: str, port: int) -> None:
        if await self._reaches(host, port) and self._network.state is NetworkState.DOUBTED:
            self._hear(host, port)
            self._doer.schedule()

    def _lose(self) -> None:
        self._network.lost(self._loop.time())
        last = self._kept[-1].step if self._kept else ""
        logger.warning(
            "the network cannot be reached: nobody answers (the last: %s). Pictures wait for it, up to "
            "outage_patience=%g s",
            last if isinstance(last, PictureError) else self._kept[-1].job.host,
            self._patience,
        )
        self._doer.forgive_hosts()
        self._stall()
        self._end = self._loop.call_later(self._patience, self._give_up)

    def _stall(self) -> None:
        """Make jobs that failed in silence as if they had not been asked; one of them is asked again now and then."""
        kept, self._kept = self._kept, []
        for one in kept:
            self._undo(one)
            self._stalled.append(one.job)
        self._loop.call_at(self._network.asks_at, self._doer.schedule)

    def _undo(self, one: _Kept) -> None:
        if one.before is not None:
            one.job.progress = one.before

    def _give_up(self) -> None:
        self._forget_end()
        self._network = Network()
        self._stalled.clear()
        self._doer.give_up(
            lambda: NetworkOutage(
                f"the network cannot be reached: nobody answered for outage_patience={self._patience:g} s. No picture "
                "was counted as failed for it. Go on once it is back, or wait longer with a larger outage_patience; "
                "images='none' does without pictures"
            )
        )

    def _forget_end(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _slept_since(self, began: float) -> bool:
        self._notice_sleep()
        return self._network.was_asleep(began)

    def _on_beat(self) -> None:
        self._notice_sleep()
        self._beat = self._loop.call_later(_BEAT, self._on_beat)

    def _notice_sleep(self) -> None:
        seen = time.clock_gettime(_SLEEP_CLOCK)
        if self._network.slept(seen - self._looked_at, _BEAT, self._loop.time()):
            logger.warning(
                "this process stood still for %.0f s; what was under way is asked again", seen - self._looked_at
            )
        self._looked_at = seen
