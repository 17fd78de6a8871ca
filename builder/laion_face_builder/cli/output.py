"""What comes out: data on stdout in the format that is asked for, complaints on stderr, whatever the streams are."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from laion_face_builder.shown import hushed

FORMATS = ("human", "json", "quiet")
#: Three paths as long as Linux has them; what an error names is to be typed.
_LONGEST = 16_000


class OutputFailed(Exception):
    """Standard output cannot be written; `error` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Output:
    """Where a command puts its data. Of `lines` and `document` one counts, by the format; of neither with "quiet"."""

    format: str

    def lines(self, lines: Iterable[str]) -> None:
        """For people. What is not wanted is not even made."""
        if self.format == "human":
            for line in lines:
                say(line)

    def document(self, make: Callable[[], object]) -> None:
        """For programs: one line of JSON, of the shape that `schemas` has for the command."""
        if self.format == "json":
            say(json.dumps(make()))


def say(text: str, end: str = "\n") -> None:
    """Write to stdout, at once.

    Raises:
        OutputFailed: it cannot be written. A socket that breaks is another matter, so it is told apart here.
    """
    try:
        if sys.stdout is None:  # Its descriptor was closed before we were started.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, end=end, flush=True)
    except OSError as error:
        raise OutputFailed(error) from error


def finish() -> None:
    """Write what waits for stdout, whoever printed it.

    Raises:
        OutputFailed: it cannot be written.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error) from error


def complain(message: str) -> None:
    """Write one line to stderr, if there is still anybody to read it."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"laion-face: error: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Give the text in one line, without passwords, signatures and tokens, and not without end."""
    text = hushed(" ".join(text.split()))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def survive_any_encoding() -> None:
    """Let captions and paths through where the terminal knows ASCII only: what it cannot show comes as \\uXXXX."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # what has none is let be
