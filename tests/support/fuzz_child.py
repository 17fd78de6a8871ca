"""Try the cases of something hostile in a process of its own, within bounds, and go on behind those that end it.

A `Trial` makes its cases from their numbers, so that what is found can be run again. A case is found to be wrong if the
process dies, if it takes longer than `PATIENCE`, if anything is raised, and if what it gives differs from what is true
with nobody saying so.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

#: Bytes of address space that a process has.
MEMORY = 2 << 30
#: Seconds that one case may take on a busy machine; on an idle one they take milliseconds.
PATIENCE = 60
#: The same for what comes before the first.
_START = 300
_IN_MEMORY = Path("/dev/shm")

SAME, CLEAR, SILENT, TRACEBACK, HUNG = "as without the fault", "clear error", "silent", "traceback", "hung"
#: What can become of a case; of the last three there have to be none.
OUTCOMES = (SAME, CLEAR, SILENT, TRACEBACK, HUNG)
BAD = OUTCOMES[2:]
#: What a trial says where there is no true reading to compare with: it was read, alike in all ways.
READ = "read"


class SilentError(AssertionError):
    """Something else came than without the fault, and nothing was said."""


class Trial(Protocol):
    """What is tried; it travels to the process that tries it."""

    def ready(self, folder: Path) -> Callable[[int], str]:
        """Prepare what all cases need.

        Args:
            folder: for files of its own.

        Returns:
            what tries the case of a number, and says how it ended: SAME, READ, else the name of a clear error. It
            raises SilentError, or whatever came that is no clear error.
        """
        ...


@dataclass
class Found:
    """What a run has found.

    Attributes:
        counts: how the cases ended, in the words of their trial.
        wrong: what should not be, with the number of its case.
        bad: how many of these there are of each kind in `BAD`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)

    @property
    def tried(self) -> int:
        """How many cases there were."""
        return self.counts.total() + self.bad.total()

    @property
    def outcomes(self) -> Counter[str]:
        """How many cases ended in each way of `OUTCOMES`."""
        same = self.counts[SAME] + self.counts[READ]
        return Counter({SAME: same, CLEAR: self.counts.total() - same}) + self.bad

    def add(self, other: Found) -> None:
        """Add what another run has found."""
        self.counts += other.counts
        self.wrong += other.wrong
        self.bad += other.bad

    def note(self, kind: str, number: int, what: str) -> None:
        """Add a case that should not be."""
        self.bad[kind] += 1
        self.wrong.append(f"case {number}: {kind}: {what}")


def fuzz(trial: Trial, numbers: range, patience: float = PATIENCE) -> Found:
    """Try these cases in a process of their own; where it dies or hangs, go on in another one behind that case."""
    found = Found()
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None) as folder:
        while numbers:
            at = _one_child(trial, numbers, Path(folder), patience, found)
            numbers = numbers[numbers.index(at) + 1 :] if at is not None else numbers[:0]
    return found


def _one_child(trial: Trial, numbers: range, folder: Path, patience: float, found: Found) -> int | None:
    """Run one process; return the case that ended it, None if it came to the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(trial, numbers, folder, there))
    child.start()
    there.close()
    at, wait = numbers[0], float(_START)
    try:
        while here.poll(wait):
            wait = patience
            kind, number, what = here.recv()
            if kind == "end":
                return None
            at = number
            if kind in BAD:
                found.note(kind, at, what)
            elif kind == "ended":
                found.counts[what] += 1
        found.note(HUNG, at, f"took longer than {wait:.0f} s")
    except EOFError:
        child.join(patience)
        found.note(TRACEBACK, at, f"ended its process, exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()
    return at


def _work(trial: Trial, numbers: range, folder: Path, out: Connection) -> None:
    """Try the cases; tell where it is before each, and what came of it."""
    logging.disable()
    attempt = trial.ready(folder)
    out.send(("ready", numbers[0], ""))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        out.send(("at", number, ""))
        try:
            out.send(("ended", number, attempt(number)))
        except SilentError as error:
            out.send((SILENT, number, f"{error!s:.500}"))
        except Exception:
            out.send((TRACEBACK, number, traceback.format_exc(limit=-4)))
    out.send(("end", 0, ""))
