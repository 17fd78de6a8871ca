"""What a command uses: seconds, CPU, and memory of all its processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.5

# What is measured is not the compiler: without bytecode each start of Python would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@dataclass(frozen=True)
class Used:
    """Wall seconds; CPU seconds, user and system; peak of resident memory in GB."""

    seconds: float
    cpu: float
    peak: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cpu:.1f} s of CPU, {self.peak:.2f} GB"


def measure(command: Sequence[str]) -> Used:
    """Run a command, and measure it with its children.

    Memory is the largest of what the kernel noted of any one of them, and of the sums over those there were at a time,
    looked at ten times a second (Linux only; pages that several share count once). The kernel's figure of a child is
    never below what its parent had when it started: what needs memory goes through `apart`.

    Raises:
        SystemExit: the command failed.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        family = Family(process.pid)
        family.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        family.ended.set()
        family.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    one = usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return Used(seconds, usage.ru_utime + usage.ru_stime, max(one, family.peak / 1e6))


def apart(function: Callable[..., T], *args: object) -> T:
    """Call a function in a process of its own, so that this one stays small, and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def read_once(files: Iterable[Path]) -> None:
    """Bring files into the page cache."""
    buffer = bytearray(1 << 24)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class Family(threading.Thread):
    """Watches a process and its children: `peak` in kB is the most that they had together, 0 while it is only one.

    Args:
        pid: the process.
        of_one: the peak is noted of a process without children too, where the kernel's own figure is not asked for.
    """

    def __init__(self, pid: int, *, of_one: bool = False) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = pid, 0, threading.Event()
        self._of_one = of_one
        self._cpu: dict[int, float] = {}
        self._most = 0.0

    def run(self) -> None:
        while not self.ended.wait(_POLL_SECONDS):
            members = [self.pid, *_below(self.pid)]
            if self._of_one or len(members) > 1:  # the kernel's own figure is exact for one, and costs nothing
                self.peak = max(self.peak, sum(map(_proportional, members)))
            self.cpu()

    def cpu(self) -> float:
        """Return the CPU seconds, user and system, of all members so far.

        Of those that have ended it is what their parent knows, or what was last seen of them.
        """
        known = 0.0
        for pid in (self.pid, *_below(self.pid)):
            own, waited_for = _used(pid)
            self._cpu[pid] = max(self._cpu.get(pid, 0.0), own)
            known += own + waited_for
        self._most = max(self._most, known, sum(self._cpu.values()))
        return self._most


def _below(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text(encoding="utf-8").split()
        except OSError:  # the thread or the process has ended
            continue
        for child in map(int, found):
            yield child
            yield from _below(child)


def _used(pid: int) -> tuple[float, float]:
    """Return the CPU seconds of a process, and of its children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks, (int(fields[13]) + int(fields[14])) / ticks


def _proportional(pid: int) -> int:
    """Return the resident kB of a process, shared pages in equal shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
