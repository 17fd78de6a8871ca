"""How a host is used: how many connections it gets, who waits for one, and whether it is worth asking at all.

How many: a host starts with 8 connections. Quick answers while all are in use add one a round, up to the limit; 429 and
503 halve it, once for all that were asked together. All processes of this machine share the limit (`machine`). Waiting
for a host takes nothing: no connection, no place in flight, no room in the buffer, none of the picture's tries and none
of its time.

Nothing here looks at a clock: every time is handed in, in seconds of one clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Generic, TypeVar

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.machine import HostSlots, Machine
from laion_face_builder.images.reasons import http

Job = TypeVar("Job")

#: Connections to a host that nobody knows yet.
FIRST_LIMIT = 8
#: An answer is quick within so many seconds, or within twice the host's quickest: more connections help then.
_QUICK = 0.5
#: Exchanges in a row without any sign of life, after which one at a time is tried.
_DOUBT = 4
#: Refusals in a row (429) of a host that never answered otherwise and does not say for how long.
_REFUSALS = 3
#: How long a host stays down, seconds: by our own judgement, and at most by its own word.
_DOWN_SECONDS, _LONGEST_DOWN = 60.0, 3600.0
#: Hosts remembered while nothing is under way to them.
_REMEMBERED = 10_000


class HostState(Enum):
    """What a host's queue does."""

    OPEN = "it moves as connections become free"
    HELD = "it stands still for as long as the host asked"
    DOUBTED = "it moves one at a time, since the host is silent"
    DOWN = "whoever is in it fails at once"


class Contact(Enum):
    """What an exchange showed of its host."""

    NONE = "nothing: it was not asked, or not to the end"
    ANSWERED = "it says something"
    THROTTLED = "it wants fewer requests: 429 or 503"
    SILENT = "it says nothing"


class Host(Generic[Job]):
    """One host, with its connections and its queue.

    A host that is silent is asked one picture at a time, so that one which comes back loses nothing of its queue. If it
    stays silent for `patience`, its queue fails: else 4,096 pictures of a dead host would hold up a stream for hours.

    Args:
        name: for messages.
        most: connections that it may ever have.
        patience: seconds of silence until it is down.
        longest_wait: seconds that it may hold its queue, with Retry-After or without, and no answer between.
        share: of the connections that all processes of this machine have to it; None if there are no others.
    """

    def __init__(
        self, name: str, most: int, patience: float, longest_wait: float, share: HostSlots | None = None
    ) -> None:
        self.state = HostState.OPEN
        self.waiting: deque[Job] = deque()
        self.busy = 0
        self._name, self._most = name, most
        self._share = share or Machine(is_shared=False).share(name, most)
        self._patience, self._longest_wait = patience, longest_wait
        self._limit = float(min(FIRST_LIMIT, most))
        self._until = 0.0
        self._quickest = float("inf")
        self._cut_at = float("-inf")
        self._throttled_since: float | None = None
        self._refusals = self._silences = 0
        self._silent_since = 0.0
        self._has_answered = False
        self._why = ("", "")

    @property
    def limit(self) -> int:
        """Connections that the host may have now."""
        return 1 if self.state is HostState.DOUBTED else int(self._limit)

    def enter(self, job: Job, now: float, *, is_back: bool) -> bool:
        """Take a connection for `job`, or queue the job and return False: in front, if it `is_back`.

        Raises:
            PictureError: the host is down; the reason is that of what showed it.
        """
        self._look_at(now)
        if self.state is HostState.DOWN:
            raise PictureError(*self._why)
        is_full = self.state is HostState.HELD or self.busy >= self.limit
        if is_full or not self._share.grow(self.busy + 1, now):
            (self.waiting.appendleft if is_back else self.waiting.append)(job)
            return False
        self.busy += 1
        return True

    def leave(self, contact: Contact, began: float, now: float, reason: str = "", wait: float = 0.0) -> None:
        """Give a connection back, with what it showed of the host.

        Args:
            contact: what the exchange showed.
            began: when it began.
            now: the time.
            reason: why it failed.
            wait: seconds that the host asks us to stay away.
        """
        is_wanted = bool(self.waiting) or self.busy >= self.limit
        self.busy -= 1
        if contact is Contact.ANSWERED:
            self._answered(began, now - began, is_wanted)
        elif contact is Contact.THROTTLED:
            self._throttled(began, now, reason, wait)
        elif contact is Contact.SILENT:
            self._was_silent(began, now, reason)
        self._share.keep(self.busy, self._wanted, now)

    def freed(self, now: float, is_ready: Callable[[Job], bool]) -> Iterator[Job]:
        """Yield, in order, the jobs that should try to `enter` now; they are taken out of the queue.

        Args:
            now: the time.
            is_ready: False for a job that would not start even so, or has ended; another one is given beside it.
        """
        self._look_at(now)
        self._share.trim(self.busy, now)
        if self.state is HostState.DOWN:
            while self.waiting:
                yield self.waiting.popleft()
        busy, wanted = self.busy, self._wanted
        while self.waiting and busy < wanted and self._share.grow(busy + 1, now):
            job = self.waiting.popleft()
            busy += is_ready(job)
            yield job

    def forgive(self) -> None:
        """Forget the host's silence: it was not the host's fault."""
        self._silences = 0
        if self.state is HostState.DOUBTED or (self.state is HostState.DOWN and not self._refusals):
            self.state = HostState.OPEN

    def moves_at(self) -> float | None:
        """Return when the queue has to be looked at if nothing comes back before; None if that would not help."""
        if self.waiting and self.state is HostState.HELD:
            return self._until
        return self._share.moves_at(self.busy, is_wanted=self._wanted > self.busy)

    def close(self) -> None:
        """Leave the host's connections to other processes."""
        self._share.keep(0, 0, 0.0)

    @property
    def _wanted(self) -> int:
        """Connections that would be used now."""
        if self.state in (HostState.HELD, HostState.DOWN):
            return self.busy
        return max(self.busy, min(self.limit, self.busy + len(self.waiting)))

    def _look_at(self, now: float) -> None:
        if now >= self._until:
            if self.state is HostState.HELD:
                self.state = HostState.OPEN
            elif self.state is HostState.DOWN:
                self.state = HostState.DOUBTED

    def _answered(self, began: float, took: float, is_wanted: bool) -> None:
        self._silences = 0
        self._has_answered = True
        if self._refusals and began < self._cut_at:
            return  # asked before it refused: it may refuse still
        self._refusals, self._throttled_since = 0, None
        if self.state in (HostState.DOUBTED, HostState.DOWN):
            self.state = HostState.OPEN
        if is_wanted and took <= max(_QUICK, 2 * self._quickest):
            self._limit = min(self._most, self._limit + 1 / self._limit)
        self._quickest = min(self._quickest, took)

    def _throttled(self, began: float, now: float, reason: str, wait: float) -> None:
        self._silences = 0
        if began >= self._cut_at:
            self._cut(now)
            self._refusals += 1
        if not wait and reason != http(429):
            return  # 503 alone may be about this one picture
        if self._throttled_since is None:
            self._throttled_since = now
        is_closed = not wait and not self._has_answered and self._refusals >= _REFUSALS
        wait = wait or float(2 ** min(self._refusals - 1, 10))
        if is_closed or now + wait - self._throttled_since > self._longest_wait:
            self._give_up(now, min(max(wait, _DOWN_SECONDS), _LONGEST_DOWN), reason, f"not before {wait:g} s are over")
        elif self.state is not HostState.DOWN:
            self._until = max(self._until, now + wait) if self.state is HostState.HELD else now + wait
            self.state = HostState.HELD

    def _was_silent(self, began: float, now: float, reason: str) -> None:
        if not self._silences:
            self._silent_since = began
        self._silences += 1
        if self._silences < _DOUBT and self.state is not HostState.DOUBTED:
            return
        if now - self._silent_since >= self._patience:
            self._give_up(now, _DOWN_SECONDS, reason, f"silent {self._silences} times in a row")
        elif self.state is HostState.OPEN:
            self.state = HostState.DOUBTED
            self._cut(now)

    def _cut(self, now: float) -> None:
        self._limit = max(1.0, self._limit / 2)
        self._cut_at = now

    def _give_up(self, now: float, seconds: float, reason: str, why: str) -> None:
        self.state = HostState.DOWN
        self._until = now + seconds
        self._why = (reason, f"{self._name}: {why}")


class Hosts(Generic[Job]):
    """The hosts by name, as far as they were used lately. For one thread.

    Args:
        most: connections to one host at a time.
        patience: see `Host`.
        longest_wait: see `Host`.
        machine: what other processes of this machine share the connections by; None if there are no others.
    """

    def __init__(self, most: int, patience: float, longest_wait: float, machine: Machine | None = None) -> None:
        self._how = most, patience, longest_wait
        self._machine = machine or Machine(is_shared=False)
        self._hosts: OrderedDict[str, Host[Job]] = OrderedDict()

    def __getitem__(self, name: str) -> Host[Job]:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name, *self._how, self._machine.share(name, self._how[0]))
            self._forget()
        return host

    def __iter__(self) -> Iterator[Host[Job]]:
        return iter(self._hosts.values())

    def _forget(self) -> None:
        while len(self._hosts) > _REMEMBERED:
            name, host = next(iter(self._hosts.items()))
            if host.busy or host.waiting:
                self._hosts.move_to_end(name)
                return
            host.close()
            del self._hosts[name]
