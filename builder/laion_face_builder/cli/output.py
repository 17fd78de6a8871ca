"""Write data to stdout in the format that is asked for, and errors to stderr, even if the streams are broken.

With `--format quiet` the messages on stderr are silenced.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from typing import Any, TextIO, cast

from laion_face_builder import progress
from laion_face_builder.log import logger
from laion_face_builder.shown import short


@contextmanager
def silence() -> Iterator[None]:
    """Let only errors be printed to stderr: no messages, no progress bars, no warnings of libraries."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    progress.set_quiet(True)
    try:
        with warnings.catch_warnings(), redirect_stderr(cast(TextIO, _NoTerminal(sys.stderr))):
            warnings.simplefilter("ignore")
            yield
    finally:
        progress.set_quiet(False)
        logger.setLevel(before)


class _NoTerminal:
    """Stderr that says it is no terminal, so that libraries draw no progress bars either."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


FORMATS = ("human", "json", "quiet")
#: Characters of an error: room for three of the longest paths that Linux has, since users need them whole.
LONGEST = 16_000


class OutputFailed(Exception):
    """Standard output cannot be written; `error` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Output:
    """Prints a command's data: `lines` with the format "human", `document` with "json", neither with "quiet"."""

    format: str

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines for people; in other formats the lines are not even made."""
        if self.format == "human":
            for line in lines:
                say(line)

    def document(self, make: Callable[[], object]) -> None:
        """Print a document for programs: one line of JSON, of the shape that `schemas` has for the command."""
        if self.format == "json":
            say(json.dumps(make()))


def say(text: str, end: str = "\n") -> None:
    """Write to stdout, at once.

    Raises:
        OutputFailed: stdout cannot be written; an error of its own, so that a broken socket is not taken for it.
    """
    try:
        if sys.stdout is None:  # Its descriptor was closed before we were started.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, end=end, flush=True)
    except OSError as error:
        raise OutputFailed(error) from error


def finish() -> None:
    """Flush stdout, whatever printed to it.

    Raises:
        OutputFailed: stdout cannot be written.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error) from error


def complain(message: str) -> None:
    """Write an error to stderr in one line; do nothing if stderr is closed."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"laion-face: error: {short(message, LONGEST)}", file=sys.stderr, flush=True)


def survive_any_encoding() -> None:
    """Let captions and paths be printed where the terminal knows ASCII only: other characters come as \\uXXXX."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # what has none is let be
