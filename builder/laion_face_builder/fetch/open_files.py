"""How many connections this process may have open: its limit of open files, raised as far as it goes.

What is left changes while pictures are fetched, since others open files too. When none is left, that is an outage of
our own: nothing is started for a while, and no picture has failed.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import replace

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.reasons import Reason
from laion_face_builder.log import logger

#: A hard limit may be "unlimited"; more than this nobody needs.
_ENOUGH = 65_536
#: Left to everything else in the process: data files, pipes to workers, libraries yet to be loaded.
_OTHERS = 128
#: Of one picture under way: libcurl tries IPv6 and IPv4 side by side.
_FILES_A_PICTURE = 2
#: Errands to sites' rules at a time, for each picture: two pictures need one, which opens the connection for both.
_ERRANDS_A_PICTURE = 1
#: Seconds for which nothing is started, twice as long each time; and between two words about it.
_FIRST_PAUSE, _LONGEST_PAUSE, _QUIET = 0.5, 10.0, 60.0


class NoFiles(PictureError):
    """This process, or the system, has no file descriptor left: it says nothing about the picture or its host."""

    def __init__(self, reason: str = Reason.CONNECTION, detail: str = "no file descriptor is left") -> None:
        super().__init__(reason, detail)


class Shortage:
    """How long nothing is started because no file descriptor is left; for one thread. Times are seconds of one clock.

    Args:
        patience: seconds after which waiting is given up.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None
        self._said_at = float("-inf")
        self._pause = _FIRST_PAUSE
        #: Nothing is started before.
        self.until = float("-inf")

    def met(self, now: float) -> None:
        """Take note that a file was wanted and none was left."""
        if now < self.until:
            return
        if self._since is None:
            self._since = now
        self.until = now + self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        if now - self._said_at >= _QUIET:
            self._said_at = now
            logger.warning(
                "no file descriptor is left (`ulimit -n` says how many there are). Pictures wait until others close "
                "theirs, up to outage_patience=%g s; none has failed for it",
                self._patience,
            )

    def heard(self, began: float) -> None:
        """Take note of an exchange that went well."""
        if self._since is not None and began >= self.until:
            self._since, self._pause = None, _FIRST_PAUSE

    def is_too_long(self, now: float) -> bool:
        """Say whether waiting is to be given up; if so, it begins anew."""
        if self._since is None or now - self._since < self._patience:
            return False
        self._since, self._pause, self.until = None, _FIRST_PAUSE, now
        return True


def are_gone(error: BaseException | None = None) -> bool:
    """Say whether `error` means that no file is left, or (None) find out by opening some."""
    if error is None:
        try:
            reader, writer = os.pipe()
        except OSError as found:
            return are_gone(found)
        os.close(reader)
        os.close(writer)
        return False
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def within(limits: FetchLimits) -> FetchLimits:
    """Return the same limits, with no more pictures in flight and connections kept than there may be open files.

    The process's soft limit is raised to its hard one first. What is left after that decides, and is logged if it is
    less than what was asked for.
    """
    free = max(0, _raised() - _open_now() - _OTHERS)
    files = _FILES_A_PICTURE * (1 + _ERRANDS_A_PICTURE * limits.asks_sites)
    concurrency = max(1, min(limits.options.concurrency, free // files))
    if concurrency < limits.options.concurrency:
        logger.warning(
            "concurrency=%d: this process may have %d files open, which is enough for %d pictures at a time. "
            "`ulimit -n` says how many; raise the hard limit for more",
            limits.options.concurrency,
            _raised(),
            concurrency,
        )
    kept = max(concurrency, min(limits.kept_connections + concurrency, free - concurrency))
    return replace(limits, options=replace(limits.options, concurrency=concurrency), kept_connections=kept)


def errands(limits: FetchLimits) -> int:
    """Return how many errands to sites' rules may be under way at a time, beside the pictures."""
    return limits.options.concurrency * _ERRANDS_A_PICTURE


def _raised() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _ENOUGH if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS allows less than it says
        return soft
    return wanted


def _open_now() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0
