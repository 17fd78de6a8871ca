"""What a worker process does with a task: call the function, collect what is logged, answer with its value or error."""

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
    """A worker's answer: the function's value or its error, and what it logged (`said`: levels and lines)."""

    value: Any
    error: Exception | None
    said: list[tuple[int, str]]


def answered(call: tuple[Callable[[Any], Any], Any]) -> Answer:
    """Call a function with its task; return its value or the exception that it raised."""
    function, task = call
    with _noted() as said:
        try:
            return Answer(function(task), None, said)
        except Exception as error:  # It is the caller's, who may know what to do with it.
            return Answer(None, _portable(error), said)


def _portable(error: Exception) -> Exception:
    """Return the error if it can be pickled and unpickled, else a LaionFaceError with its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made a moment ago
        return error
    except Exception:  # Whatever classes of others do when they are made again.
        return LaionFaceError(f"{type(error).__name__}: {error}")


class _Notes(logging.Handler):
    """A log handler that keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelno, record.getMessage()))


@contextmanager
def _noted() -> Iterator[list[tuple[int, str]]]:
    """Collect what is logged in the block instead of writing it out."""
    notes, before = _Notes(), (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = [notes], False
    logger.setLevel(logging.INFO)
    try:
        yield notes.said
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
