"""What a worker does with a task: it calls the function, notes what is logged, and answers with what came of it."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from laion_face_builder.errors import LaionFaceError

logger = logging.getLogger("laion_face")


@dataclass(frozen=True)
class Answer:
    """What comes back from a worker; `said` are levels and lines of the log."""

    value: Any
    error: Exception | None
    said: list[tuple[int, str]]


def answered(call: tuple[Callable[[Any], Any], Any]) -> Answer:
    """Call a function with its task, whatever comes of it."""
    function, task = call
    with _noted() as said:
        try:
            return Answer(function(task), None, said)
        except Exception as error:  # It is the caller's, who may know what to do with it.
            return Answer(None, _portable(error), said)


def _portable(error: Exception) -> Exception:
    """The error if it survives the way; else its words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made a moment ago
        return error
    except Exception:  # Whatever classes of others do when they are made again.
        return LaionFaceError(f"{type(error).__name__}: {error}")


class _Notes(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelno, record.getMessage()))


@contextmanager
def _noted() -> Iterator[list[tuple[int, str]]]:
    """Note what is logged in the block instead of saying it."""
    notes, before = _Notes(), (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = [notes], False
    logger.setLevel(logging.INFO)
    try:
        yield notes.said
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
