"""Judge by a run's failures whether it lost its network: such a run must not become an Arrow cache.

When the network falls silent, the fetcher notices and waits, and no picture fails (`fetch.network`). This module finds
the outages that the fetcher takes for answers: a proxy or firewall that refuses everything, a resolver or sign-in page
that answers for every host, a run with one host only. About a quarter of LAION's pictures are gone, often with their
hosts; that is normal, and a cache of the rest is right. The two differ in the order of the rows: dead hosts stand among
living ones, while in an outage all are silent for a stretch.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Failures without an answer from the host: what a lost network, a broken resolver or a sign-in page look like.
SILENT = frozenset(
    {"dns", "refused", "unreachable", "connection", "timeout", "reset", "tls", "private_address", "http_511"}
)
#: What one answer outweighs. A stretch only adds up where more than three quarters of its pictures meet silence.
ANSWER_WEIGHS = 3
#: How much silence is an outage: a tenth of the pictures, but no fewer than 10, for which a quarter of dead links does
#: not suffice once in a million stretches, and no more than 50.
FEWEST, MOST = 10, 50
#: So many hosts that answered are remembered, the latest.
_REMEMBERED = 10_000


class Listener:
    """Counts, picture by picture, which hosts answered: one process's share of a run, in order."""

    def __init__(self) -> None:
        self._asked = 0
        self._sum = self._most = 0
        self._silent: set[str] = set()
        self._answered: dict[str, None] = {}

    def answered(self, host: str) -> None:
        """Count a picture whose host answered, even with 404."""
        self._asked += 1
        self._sum = max(0, self._sum - ANSWER_WEIGHS)
        if not self._sum:
            self._silent.clear()
        self._answered.pop(host, None)
        self._answered[host] = None
        if len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def silent(self, host: str) -> None:
        """Count a picture whose host did not answer.

        A host counts once a stretch, so that all pictures of one dead host count as one; a host that answered before
        counts each time, since it is not the picture's address that is wrong.
        """
        self._asked += 1
        if self._most >= MOST:
            return
        if host not in self._silent or host in self._answered:
            self._silent.add(host)
            self._sum += 1
            self._most = max(self._most, self._sum)

    @property
    def lost_network(self) -> bool:
        """Whether a stretch was silent for too long."""
        return self._most >= min(MOST, max(FEWEST, self._asked // 10))


def lost_network(asked: Iterable[tuple[str, str | None]]) -> bool:
    """Say whether pictures, in the order asked for, show an outage: (host, why it failed or None if it came)."""
    listener = Listener()
    for host, reason in asked:
        (listener.silent if reason in SILENT else listener.answered)(host)
    return listener.lost_network
