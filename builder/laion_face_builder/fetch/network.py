"""Whether the network works: telling a lost one, or a machine that slept, from pictures that are gone.

A quarter of LAION's pictures are gone, hosts and all, and that is the web. An outage is known by its breadth and its
silence: `BREADTH` hosts, all different, were asked, and meanwhile nobody at all has said anything. Anything counts: a
picture, a 404, a refused connection, a broken handshake, a name server's word that there is no such name (macOS says
that without a network too, so there it does not count). Silence is a connection that does not come about or brings no
byte in time, no way to the host, and a name that nobody answers for.

What failed while others were heard is the pictures' own affair, however much it is. And where breadth alone might
mislead, because only the dead ones of a list are left, a host that was heard before is asked once more.

Nothing here looks at a clock: times are handed in, in seconds.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from enum import Enum

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
