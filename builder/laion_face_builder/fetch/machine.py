"""One bound per host for all processes of a user on one machine: four DataLoader workers are one guest, not four.

    FOLDER/laion-face-UID/hosts-0 … hosts-15    nothing but locks lies in them

FOLDER is XDG_RUNTIME_DIR, else the folder for temporary files. A host has a range of bytes in one of the files, and
each byte is a request that may be under way: whoever has it locked may ask. The kernel lets go of the locks of a
process that dies, however it dies. A slot is kept while the host has a queue here, and given up after a while if
another process waits, which it shows by a lock on the range's last byte; so the shares of all that wait become alike.

Where the system has no such locks (macOS), or the folder cannot be had, the bound is each process's own.

Nothing here looks at a clock: times are handed in, in seconds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import struct
import sys
import tempfile
import zlib
from collections import deque
from contextlib import suppress
from pathlib import Path

from laion_face_builder.log import logger

_FILES = 16
#: Bytes of a host. The last one says that somebody waits.
_RANGE = 1 << 14
_WANTED = _RANGE - 1
#: Slots that are tried before there is none for now.
_TRIES = 64
#: Seconds until it is tried again; twice that for who has just given one up for others.
_PAUSE = 0.05
#: Seconds that a slot is kept while others wait, and that one is kept without being used.
_LEASE, _SPARE = 1.0, 1.0
#: Linux's `struct flock` where off_t has 64 bits: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
_HAS_LOCKS = sys.platform == "linux" and sys.maxsize > 2**32


class Machine:
    """The lock files; one object for each fetcher's thread. `close` it when done, and in a forked child.

    Args:
        is_shared: False for a bound that is this thread's own.
    """

    def __init__(self, *, is_shared: bool = True) -> None:
        self._files: list[int] = []
        try:
            if is_shared:
                self._open()
        except OSError as error:
            self._do_without(error)

    def share(self, host: str, most: int) -> HostSlots:
        """Return this thread's share of what a host is asked at a time; it has no slots yet.

        Args:
            host: its name.
            most: requests to it at a time, of all processes together.
        """
        return HostSlots(self, zlib.crc32(host.encode("utf-8", "replace")), most)

    def close(self) -> None:
        """Close the files, and with them let go of every lock unless the parent of this process has them open."""
        files, self._files = self._files, []
        for file in files:
            os.close(file)

    def set_lock(self, host: int, byte: int, kind: int) -> bool:
        """Lock or unlock a byte of a host's range; return False if another thread or process has it."""
        if not self._files:
            return True
        try:
            fcntl.fcntl(self._files[host % _FILES], fcntl.F_OFD_SETLK, _flock(kind, host, byte))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            self._do_without(error)
        return True

    def is_locked(self, host: int, byte: int) -> bool:
        """Say whether another thread or process has a lock on the byte."""
        if not self._files:
            return False
        asked = _flock(fcntl.F_WRLCK, host, byte)
        found = fcntl.fcntl(self._files[host % _FILES], fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def _open(self) -> None:
        if not _HAS_LOCKS:
            raise OSError("this system has no locks of open files")
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or os.devnull)
        folder = (runtime if runtime.is_dir() else Path(tempfile.gettempdir())) / f"laion-face-{os.geteuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise OSError(f"{folder}: expected a folder of this user's alone")
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        for number in range(_FILES):
            self._files.append(os.open(folder / f"hosts-{number}", how, 0o600))
        self.is_locked(0, 0)

    def _do_without(self, error: OSError) -> None:
        self.close()
        logger.debug("per_host holds for each process by itself, not for all of this machine: %s", error)


class HostSlots:
    """A fetcher's slots of one host: as many requests as it may have under way."""

    def __init__(self, machine: Machine, host: int, most: int) -> None:
        self._machine, self._host = machine, host
        self._most = min(most, _WANTED)
        #: Slots, and until when each may be kept if others wait; the oldest first.
        self._held: deque[tuple[float, int]] = deque()
        self._next = os.getpid() % self._most
        self._asks_at = self._spare_until = 0.0
        self._waits = False

    @property
    def held(self) -> int:
        """Slots that the share has."""
        return len(self._held)

    def grow(self, count: int, now: float) -> bool:
        """Say whether the share has `count` slots, or gets them now."""
        while len(self._held) < count:
            if now < self._asks_at or not self._take(now):
                return False
        return True

    def keep(self, used: int, wanted: int, now: float) -> None:
        """Give back what is not wanted, and one slot more if it is another's turn.

        Args:
            used: slots that are in use.
            wanted: slots that would be used, these included.
            now: the time.
        """
        while len(self._held) > max(used, wanted):
            self._give()
        if wanted <= len(self._held):
            self._wait(waits=False)
        if len(self._held) <= used:
            return
        self._spare_until = now + _SPARE
        if self._held[0][0] <= now:
            if self._machine.is_locked(self._host, _WANTED):
                self._give()
                self._asks_at = now + 2 * _PAUSE
            else:
                self._held.append((now + _LEASE, self._held.popleft()[1]))

    def moves_at(self, used: int, *, is_wanted: bool) -> float | None:
        """Return when to look again for more slots, or for some that were kept for nothing; None if never."""
        if is_wanted and len(self._held) <= used:
            return self._asks_at
        return self._spare_until if len(self._held) > used else None

    def trim(self, used: int, now: float) -> None:
        """Give back slots that were kept for too long without being used."""
        while len(self._held) > used and now >= self._spare_until:
            self._give()

    def _take(self, now: float) -> bool:
        mine = {slot for _, slot in self._held} if self._held else ()
        for _ in range(min(self._most, _TRIES)):
            slot = self._next
            if slot not in mine and self._machine.set_lock(self._host, slot, fcntl.F_WRLCK):
                # They would all be given up at once otherwise.
                self._held.append((now + _LEASE * random.uniform(0.75, 1.25), slot))  # noqa: S311 - no secret
                self._spare_until = now + _SPARE
                self._wait(waits=False)
                return True
            self._next = (slot + 1) % self._most
        self._asks_at = now + _PAUSE
        self._wait(waits=True)
        return False

    def _give(self) -> None:
        self._machine.set_lock(self._host, self._held.popleft()[1], fcntl.F_UNLCK)

    def _wait(self, *, waits: bool) -> None:
        if waits != self._waits:
            self._waits = waits
            self._machine.set_lock(self._host, _WANTED, fcntl.F_RDLCK if waits else fcntl.F_UNLCK)


def _flock(kind: int, host: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, host // _FILES * _RANGE + byte, 1, 0)
