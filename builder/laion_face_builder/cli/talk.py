"""Silence the messages on stderr, for `--format quiet`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast

from laion_face_builder import progress

logger = logging.getLogger("laion_face")


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
