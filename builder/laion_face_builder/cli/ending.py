"""How a process of ours ends: at once and with one line after Ctrl-C, and without complaints from Python itself.

This is the first module that `main` imports, and it needs no other of ours: it may be called while one is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import IO, Any

INTERRUPTED = 130

#: What a stream may answer: it fails, is closed, or is none; or the code that Ctrl-C stopped is writing to it.
_NO_STREAM = (OSError, ValueError, AttributeError, RuntimeError)


def interrupted(*, is_own_process: bool) -> int:
    """Say so, and give the exit code; with threads at work the process ends here.

    Python would wait for them, and all files are whole anyway.
    """
    import threading

    _say_interrupted(is_own_process)
    if is_own_process and threading.active_count() > 1:
        _leave()
    return settle(INTERRUPTED) if is_own_process else INTERRUPTED


def take_over_ctrl_c() -> None:
    """Make sure that no Ctrl-C is lost or becomes a traceback.

    Libraries swallow a KeyboardInterrupt that comes while they are imported (a bare `except:`), and Python itself one
    that comes in a callback, with a traceback. Nothing is half done then that a kill would not leave as well.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return  # As in `laion-face … &` in a script: whoever started us does not want it to reach us.
    own = os.getpid()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own and _is_importing(frame):
            _say_interrupted(is_own_process=True)
            _leave()
        raise KeyboardInterrupt

    def on_unraisable(what: Any) -> None:
        if os.getpid() == own and what.exc_type is KeyboardInterrupt:
            _say_interrupted(is_own_process=True)
            _leave()
        sys.__unraisablehook__(what)

    signal.signal(signal.SIGINT, on_interrupt)
    sys.unraisablehook = on_unraisable


def settle(code: int) -> int:
    """Leave nothing for Python to trip over at exit: streams that fail, or a late Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        _flush_or_give_up(stream)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _say_interrupted(is_own_process: bool) -> None:
    if is_own_process:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # One Ctrl-C too many ends us, but must not become a traceback.
    with suppress(*_NO_STREAM):
        sys.stderr.write("laion-face: interrupted; run the same command again to go on\n")
        sys.stderr.flush()


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(*_NO_STREAM):
            stream.flush()
    os._exit(INTERRUPTED)


def _flush_or_give_up(stream: IO[str] | None) -> None:
    """Write what waits; if that fails, point the stream to nowhere, or Python would complain of it at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
