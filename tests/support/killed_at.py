"""Kill a call before each thing that it does to files, and call it again; say what is there then.

    python -m tests.support.killed_at BEGINNING WORK SOURCE EVERY    prints a JSON object

SOURCE is Python, run in a fork of one process that has imported what its first lines import. It finds the folder that
it works in, a copy of BEGINNING, as `root`. It is killed before every EVERYth thing that it does. Printed are how often
that was, what is there after a run that was left alone, and what was there after each kill and the next run, where that
is something else.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_DEEDS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(NamedTuple):
    """What came of it: how often it was killed, the files of a run that was not, and the differences otherwise."""

    times: int
    whole: dict[str, str]
    others: list[Any]


def killed_everywhere(beginning: Path, work: Path, source: str, every: int = 1) -> Killed:
    """Run this module."""
    command = [sys.executable, "-m", "tests.support.killed_at", str(beginning), str(work), source, str(every)]
    root = Path(__file__).resolve().parents[2]  # `tests` is no installed package
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=root)
    return Killed(**json.loads(done.stdout.splitlines()[-1]))


def files_in(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file but locks, by its path below `root`."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _run(beginning: Path, work: Path, source: str, at: int | None) -> bool:
    """Run `source` on a new copy of the beginning, or on what is there if `at` is None; say whether it was killed."""
    if at is not None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(beginning, work)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if at is not None:
                _die_at(at, work)
            exec(source, {"root": work})
            code = 0
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), f"it ended with {ended}"
    return ended != 0


def _die_at(at: int, work: Path) -> None:
    deeds = itertools.count()

    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in _DEEDS or not str(arguments[0]).startswith(str(work)):
            return
        if (name != "open" or arguments[2] & _WRITES) and next(deeds) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def main() -> None:
    """Do it as the command line says."""
    beginning, work, source = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    importlib.import_module("pandas")  # which pyarrow does when it makes its first array of NumPy's
    exec("\n".join(line for line in source.splitlines() if line.startswith(("import ", "from "))), {})
    assert not _run(beginning, work, source, sys.maxsize)
    whole, others = files_in(work), []
    for times in itertools.count():
        at = times * int(sys.argv[4])
        if not _run(beginning, work, source, at):
            break
        _run(beginning, work, source, None)
        found = files_in(work)
        others += [at, sorted(set(found.items()) ^ set(whole.items()))] if found != whole else []
    print(json.dumps({"times": times, "whole": whole, "others": others}))


if __name__ == "__main__":
    main()
