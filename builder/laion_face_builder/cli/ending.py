"""How a process of ours ends: at once and with one line after Ctrl-C, and without complaints from Python itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from laion_face_builder.cli import output

INTERRUPTED = 130


def interrupted(*, is_own_process: bool) -> int:
    """Say so, and give the exit code; with threads at work the process ends here.

    Python would wait for them, and all files are whole anyway.
    """
    if is_own_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # One Ctrl-C too many must not become a traceback.
    output.complain("interrupted; run the same command again to go on", kind="")
    if is_own_process and threading.active_count() > 1:
        _leave()
    return settle(INTERRUPTED) if is_own_process else INTERRUPTED


def take_over_ctrl_c() -> None:
    """Make sure that no Ctrl-C is lost or becomes a traceback.

    Libraries swallow a KeyboardInterrupt that comes while they are imported (a bare `except:`), and Python itself one
    that comes in a callback, with a traceback. Nothing is half done then that a kill would not leave as well.
    """
    own = os.getpid()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own and _is_importing(frame):
            interrupted(is_own_process=True)
            _leave()
        raise KeyboardInterrupt

    def on_unraisable(what: Any) -> None:
        if os.getpid() == own and what.exc_type is KeyboardInterrupt:
            interrupted(is_own_process=True)
            _leave()
        sys.__unraisablehook__(what)

    signal.signal(signal.SIGINT, on_interrupt)
    sys.unraisablehook = on_unraisable


def settle(code: int) -> int:
    """Leave nothing for Python to trip over at exit: streams that fail, or a late Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        output.flush_or_give_up(stream)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        output.flush_or_give_up(stream)
    os._exit(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
