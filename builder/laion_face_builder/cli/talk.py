"""Talk goes to stderr, data to stdout."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("laion_face")


def talk_to_stderr() -> None:
    """Let the logger of the project be heard on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
