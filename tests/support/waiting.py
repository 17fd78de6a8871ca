"""Waiting for what is bound to happen, however slow the machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], object], seconds: float = 120.0, every: float = 0.01) -> None:
    """Return as soon as the condition holds.

    Raises:
        AssertionError: it does not after so many seconds.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(every)


def kill_when(process: subprocess.Popen[Any], happened: Callable[[], object]) -> None:
    """Kill the process as soon as that has happened.

    Raises:
        AssertionError: it ended before.
    """
    wait_until(lambda: process.poll() is not None or happened(), every=0.002)
    process.kill()
    said = process.communicate()
    assert process.returncode < 0, said
