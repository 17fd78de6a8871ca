"""Talk goes to stderr, data to stdout."""

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
    """Let nothing be heard but errors: no talk, no bars, no warnings of libraries."""
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
    """Stderr, but nobody watches it: so that bars of libraries are not drawn either."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
