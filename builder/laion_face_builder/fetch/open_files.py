"""How many connections this process may have open: its limit of open files, raised as far as it goes."""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import replace

from laion_face_builder.fetch.limits import FetchLimits

_LOG = logging.getLogger("laion_face")
#: A hard limit may be "unlimited"; more than this nobody needs.
_ENOUGH = 65_536
#: Left to everything else in the process: data files, pipes to workers, libraries yet to be loaded.
_OTHERS = 128
#: Of one picture under way: libcurl tries IPv6 and IPv4 side by side.
_FILES_A_PICTURE = 2


def within(limits: FetchLimits) -> FetchLimits:
    """The same limits, with no more pictures in flight and connections kept than there may be open files.

    The process's soft limit is raised to its hard one first. What is left after that decides, and is told if it is
    less than what was asked for.
    """
    free = max(0, _raised() - _open_now() - _OTHERS)
    concurrency = max(1, min(limits.concurrency, free // _FILES_A_PICTURE))
    if concurrency < limits.concurrency:
        _LOG.warning(
            "concurrency=%d: this process may have %d files open, which is enough for %d pictures at a time. "
            "`ulimit -n` says how many; raise the hard limit for more",
            limits.concurrency,
            _raised(),
            concurrency,
        )
    kept = max(concurrency, min(limits.kept_connections + concurrency, free - concurrency))
    return replace(limits, concurrency=concurrency, kept_connections=kept)


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
