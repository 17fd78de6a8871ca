"""End the process: at once and with one line after Ctrl-C and SIGTERM, and without complaints from Python.

SIGTERM is what `kill`, Slurm, Docker and systemd send. Both signals are raised as a KeyboardInterrupt, so that child
processes are ended and files closed for either.

This is the first module that `main` imports. It imports no other of ours, since a signal may come while one is being
imported.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import IO, Any

INTERRUPTED, TERMINATED = 130, 143

_SAID = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
#: The exit code for the signal that has come.
_code = INTERRUPTED

#: What writing to a stream may raise: it fails, is closed or None, or the code that Ctrl-C stopped is writing to it.
_NO_STREAM = (OSError, ValueError, AttributeError, RuntimeError)


def interrupted(*, is_own_process: bool) -> int:
    """Say that the command was interrupted, and give the exit code; with threads at work end the process here.

    Python would wait for the threads, and all files are whole anyway.
    """
    import threading

    _say_interrupted(is_own_process)
    if is_own_process and threading.active_count() > 1:
        _leave()
    return settle(_code) if is_own_process else _code


def take_over_signals() -> None:
    """Make sure that no Ctrl-C and no SIGTERM is lost or becomes a traceback.

    Libraries swallow a KeyboardInterrupt that comes while they are imported (a bare `except:`), and Python itself one
    that comes in a callback, with a traceback. Then the process ends at once: it leaves no more half done than a kill.
    """
    own = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        global _code  # noqa: PLW0603 - a process ends once
        _code = _CODES[signal.Signals(number)]
        if os.getpid() == own and _is_importing(frame):
            _say_interrupted(is_own_process=True)
            _leave()
        raise KeyboardInterrupt

    def on_unraisable(what: Any) -> None:
        if os.getpid() == own and what.exc_type is KeyboardInterrupt:
            _say_interrupted(is_own_process=True)
            _leave()
        sys.__unraisablehook__(what)

    for number in _CODES:
        # A script that runs `laion-face … &` has SIGINT ignored: it does not want the signal to reach us.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)
    # A pool ends its processes by SIGTERM, and they have nothing to say.
    os.register_at_fork(after_in_child=lambda: _by_default(signal.SIGTERM))
    sys.unraisablehook = on_unraisable


def settle(code: int) -> int:
    """Make sure that Python does not complain at exit, of streams that fail or a late Ctrl-C; give the code back."""
    for stream in (sys.stdout, sys.stderr):
        _flush_or_give_up(stream)
    _by_default(*_CODES)
    return code


def _say_interrupted(is_own_process: bool) -> None:
    if is_own_process:
        _by_default(*_CODES)  # One Ctrl-C too many ends us, but must not become a traceback.
    with suppress(*_NO_STREAM):
        sys.stderr.write(f"laion-face: {_SAID[_code]}; run the same command again to go on\n")
        sys.stderr.flush()


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(*_NO_STREAM):
            stream.flush()
    os._exit(_code)


def _by_default(*numbers: signal.Signals) -> None:
    """Let these signals end the process, unless they are ignored."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _flush_or_give_up(stream: IO[str] | None) -> None:
    """Flush the stream; if that fails, point it to /dev/null, or Python would complain of it at exit."""
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
