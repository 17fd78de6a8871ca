"""All output on stderr: lines of text, and the progress bars below them; no line ever lands inside a bar.

A line from any thread takes the bars away, is written in one piece, and the bars are drawn again. Bars are for people
at a terminal. In files, and on terminals that cannot move their cursor (TERM=dumb), there is a line a minute instead;
from worker processes, and for anybody who asked for quiet, nothing. There is no colour anywhere, so NO_COLOR has
nothing to turn off.

How a bar is drawn is in `progress.drawn`, which is imported with the first one: that takes a tenth of a second. The
lines instead of bars are in `progress.logged`.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

from laion_face_builder.log import logger
from laion_face_builder.progress.base import Bar

_quiet = False
#: Where the job stands here: "part 3 of 13". Each thread has its own.
_STANDING: ContextVar[str] = ContextVar("standing", default="")
#: Back to the line's beginning, and away with what is there.
_ERASE = "\r\x1b[K"


def set_quiet(quiet: bool) -> None:
    """Draw no bars from now on, or draw them again; whether lines are written is a matter of the logger's level."""
    global _quiet  # noqa: PLW0603 - one stderr, one switch
    _quiet = quiet


def bar(text: str, total: int | None, unit: str = "part", *, done: int = 0) -> Bar:
    """Return a bar, which is drawn until its `with` block ends.

    Where none can be drawn, a line is logged now and then.

    Args:
        text: what is done, such as a file's name; shortened in the middle where there is no room.
        total: how much there is to do, None if that is not known.
        unit: what is counted; "B" for bytes.
        done: what was done before.
    """
    if _quiet or _is_worker():
        return Bar(done)
    if not _can_redraw():
        from laion_face_builder.progress.logged import LoggedBar

        return LoggedBar(_STANDING.get(), text, total=total, unit=unit, done=done)
    from laion_face_builder.progress.drawn import DrawnBar

    return DrawnBar.drawn(_STANDING.get(), text, total=total, unit=unit, initial=done)


@contextmanager
def nth(what: str, number: int, of: int) -> Iterator[None]:
    """Put "part 3 of 13" in front of the bars of this block and thread, unless there is but one part."""
    before = _STANDING.get()
    _STANDING.set(f"{what} {number} of {of}" if of > 1 else before)
    try:
        yield
    finally:
        _STANDING.set(before)


def say(text: str) -> None:
    """Write a whole line to stderr, above the bars."""
    if sys.stderr is None:
        return
    # Streams that are dropped late speak when the program is ending, and stderr may have been closed.
    with suppress(ValueError, OSError), _bars_away():
        # One write: a worker process, or a thread that draws nothing, may write at the same moment.
        sys.stderr.write((_ERASE if _is_worker() and _can_redraw() else "") + text + "\n")
        sys.stderr.flush()


class Lines(logging.Handler):
    """A log handler that writes its lines to stderr, above the bars.

    Args:
        gives_way: whether to be silent once the program has logging of its own.
    """

    def __init__(self, *, gives_way: bool = False) -> None:
        super().__init__()
        self._gives_way = gives_way

    def handle(self, record: logging.LogRecord) -> Any:
        """Write `record` without the handler's lock: what is logged while a bar is drawn would wait for it for ever."""
        said = self.filter(record)
        if said:
            self.emit(said if isinstance(said, logging.LogRecord) else record)
        return said

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record`, unless this handler gives way to the program's own."""
        if self._gives_way and logging.getLogger().handlers:
            return
        try:
            say(self.format(record))
        except Exception:  # As every handler: a bad log call does not end the program.
            self.handleError(record)


def talk_to_stderr() -> None:
    """Set up the command line: what is logged and what Python warns of goes to stderr, and any text can be printed."""
    codecs.register_error("laion_face", _as_it_can)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "laion_face":
            stream.reconfigure(errors="laion_face")
    logger.handlers = [Lines()]
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [Lines()]


def talk_unless_configured() -> None:
    """Write what the library logs to stderr until the program sets up logging: sizes have to be seen before downloads.

    Called when a dataset is made or read, and never on import.
    """
    is_free = all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    if is_free and logger.level == logging.NOTSET:
        logger.addHandler(Lines(gives_way=True))
        logger.setLevel(logging.INFO)


def _as_it_can(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what the terminal has no character for: of file names their own bytes, else the character's number."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def _bars_away() -> AbstractContextManager[None]:
    """Take away all bars of this process, those of other libraries too, until the block ends.

    A worker does nothing of the kind: it has copies of its parent's bars, and maybe of a lock that nobody will release.
    """
    # While another thread imports the module, it is there and has nothing in it.
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if bars is None or _is_worker():
        return nullcontext()
    away: AbstractContextManager[None] = bars.external_write_mode(file=sys.stderr)
    return away


def _is_worker() -> bool:
    """Say whether this is a worker process of a pool; datasets has a `multiprocessing` of its own."""
    kinds = (sys.modules.get(name) for name in ("multiprocessing.process", "multiprocess.process"))
    # As above: there may be nothing in it yet.
    return any(getattr(kind, "parent_process", lambda: None)() is not None for kind in kinds)


def _can_redraw() -> bool:
    try:
        return os.environ.get("TERM") != "dumb" and sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed, or none
        return False
