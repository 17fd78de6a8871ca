"""A picture host that bears so many requests a second and no more, on loopback.

    with ThrottlingHost(per_second=20, burst=20) as host:
        host.url("/ok/1.jpg")

Above its rate it answers 429 (or 503) with Retry-After. `refused` counts these; `asked` counts all, as in HostileHost.
"""

from __future__ import annotations

import threading
import time

from tests.support.hostile_host import HostileHost, message


class Bucket:
    """Requests that may come now: `burst` at most, refilled at `per_second`. What is refused costs nothing.

    Times are seconds of any one clock.
    """

    def __init__(self, per_second: float, burst: float, now: float = 0.0) -> None:
        self._per_second, self._burst = per_second, burst
        self._left, self._at = burst, now

    def take(self, now: float) -> bool:
        """Say whether a request at `now` is within the rate."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class ThrottlingHost(HostileHost):
    """Answers /ok/ANYTHING with a picture while its rate is kept.

    Args:
        per_second: requests a second that it bears for long.
        burst: requests that it bears at once.
        retry_after: what Retry-After says, seconds or a date; None leaves it out.
        status: the answer above the rate.
    """

    def __init__(
        self,
        per_second: float,
        burst: float = 1.0,
        *,
        retry_after: str | None = "1",
        status: str = "429 Too Many Requests",
        tls: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        super().__init__(tls=tls, address=address)
        self.refused = 0
        self._bucket, self._guard = Bucket(per_second, burst, time.monotonic()), threading.Lock()
        self._refusal = message(b"", *([f"Retry-After: {retry_after}"] if retry_after else []), status=status)

    def _do_ok(self, *_: object) -> bytes:
        with self._guard:
            if self._bucket.take(time.monotonic()):
                return message(self.picture)
            self.refused += 1
            return self._refusal
