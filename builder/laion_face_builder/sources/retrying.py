"""Ask again when a failure may pass: a bounded number of times, with growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from laion_face_builder.errors import SourceError
from laion_face_builder.shown import hushed

T = TypeVar("T")

#: Tries of a small request.
LOOKUPS = 4


class TransientError(Exception):
    """A request failed in a way that may pass: dropped connection, time-out, 429, 5xx. `wait`: seconds asked for."""

    way_out = "Try again later."

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(hushed(reason))


class Unreachable(TransientError):
    """Nobody answers at all: no such name, nothing listens there, or no network."""

    way_out = "Is the address right, and the network there? If so, try again later."


def pause(attempt: int, error: TransientError | None = None) -> None:
    """Sleep half a second, doubled with each attempt up to 8 s, or as long as the server asked for, up to a minute."""
    time.sleep(max(min(0.5 * 2**attempt, 8.0), min(error.wait if error else 0.0, 60.0)))


def retried(ask: Callable[[], T], name: str) -> T:
    """Return what `ask` returns; it is called up to four times while it raises TransientError.

    Raises:
        SourceError: still no answer.
    """
    for attempt in range(LOOKUPS):
        try:
            return ask()
        except TransientError as error:
            if attempt == LOOKUPS - 1:
                raise SourceError(f"{name}: {error}; asked {LOOKUPS} times. {error.way_out}") from error
            pause(attempt, error)
    raise AssertionError("unreachable")
