"""Talk goes to stderr, data to stdout."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast

logger = logging.getLogger("laion_face")


def talk_to_stderr() -> None:
    """Let the logger of the project be heard on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


@contextmanager
def silence() -> Iterator[None]:
    """Let nothing be heard but errors: no talk, no bars, no warnings of libraries."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(cast(TextIO, _NoTerminal(sys.stderr))):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class _NoTerminal:
    """Stderr, but nobody watches it: so that bars, whoever draws them, are not drawn."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
