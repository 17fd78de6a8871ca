"""Temporary folders that a kill does not leave behind for good: the next one that is made removes those of the dead.

TMPDIR/laion-face-PURPOSE-RANDOM/
  .alive                            locked for as long as the process that made the folder, or a fork of it, lives

Whoever finds that lock free is alone with the folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "laion-face-"
_ALIVE = ".alive"
#: The locks that are held, by folder; they end with the process.
_HELD: dict[Path, int] = {}


def make_folder(purpose: str) -> Path:
    """Make a folder, and remove those of this user whose makers are dead; `remove_folder` it when done."""
    _sweep(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
        lock = os.open(folder / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a disk without locks: then nobody takes it for dead, either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / _ALIVE).exists():  # nobody swept it before it was locked
            _HELD[folder] = lock
            return folder
        os.close(lock)


def remove_folder(folder: Path) -> None:
    """Remove a folder that `make_folder` made, and all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _HELD.pop(folder, None)) is not None:
        os.close(lock)


def _sweep(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*-*"):
        with suppress(OSError):  # another's, or somebody lives, or somebody else sweeps
            if folder.lstat().st_uid == os.geteuid():
                _remove_dead(folder)


def _remove_dead(folder: Path) -> None:
    lock = os.open(folder / _ALIVE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The mark goes first: whoever has just made the folder looks for it.
        (folder / _ALIVE).unlink()
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
