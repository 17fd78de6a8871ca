"""What the server of the web in a box counts, the same for every client; and the speed that follows from it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence

#: Seconds that pictures are counted by.
TICK = 0.1


class Counts:
    """What was asked and answered since the last reset."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.cpu = _cpu()
        self.first = 0.0
        self.requests = self.throttled = self.pictures = self.connections = self.most_at_once = 0
        self.ticks: list[int] = []
        self.delivered: set[int] = set()

    def sent(self, number: int) -> None:
        """Count a picture that goes out now."""
        self.pictures += 1
        self.delivered.add(number)
        at = int((time.monotonic() - self.first) / TICK)
        self.ticks += [0] * (at + 1 - len(self.ticks))
        self.ticks[at] += 1

    def report(self, names_asked: int) -> str:
        """Return all counts as a JSON line; times are of time.monotonic(), which all processes of a machine share."""
        return json.dumps(
            {
                "first": self.first,
                "last": self.first + len(self.ticks) * TICK,
                "requests": self.requests,
                "throttled": self.throttled,
                "pictures": self.pictures,
                "delivered": len(self.delivered),
                "connections": self.connections,
                "most_at_once": self.most_at_once,
                "names_asked": names_asked,
                "ticks": self.ticks,
                "cpu": _cpu() - self.cpu,
                "seconds": time.monotonic() - (self.first or self.started),
            }
        )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def steady(ticks: Sequence[int]) -> float:
    """Return pictures a second while the middle three fifths of all went out, from the counts of each tick."""
    total, sent, begun, ended = sum(ticks), 0, 0, 0
    for at, count in enumerate(ticks):
        sent += count
        begun = at if sent <= total / 5 else begun
        ended = at if sent <= total * 4 / 5 else ended
    return sum(ticks[begun + 1 : ended + 1]) / max((ended - begun) * TICK, TICK)
