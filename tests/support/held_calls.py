"""Hold system calls of a process and of all that it starts, and answer some of them with an error, by name.

A filter of the kernel (seccomp) stops a call that may change files, or reach a network, and asks us what becomes of it.
So the calls of Python, Arrow, curl and their threads and workers are held alike, and each really happens unless it is
to fail. What is held has a name: the call, and the path below one of the watched folders.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Numbers of system calls, by the kernel's name for the machine: first all that have to do with files, by what we call
#: them; those that some machines have no more are left out there.
_NUMBERS = {
    "x86_64": {
        "open": {"open": 2, "openat": 257, "creat": 85},
        "write": {"write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "sendfile": 40},
        "fsync": {"fsync": 74, "fdatasync": 75},
        "rename": {"rename": 82, "renameat": 264, "renameat2": 316},
        "unlink": {"unlink": 87, "unlinkat": 263, "rmdir": 84},
        "mkdir": {"mkdir": 83, "mkdirat": 258},
        "truncate": {"ftruncate": 77},
        "read": {"read": 0, "pread64": 17},
        "socket": {"socket": 41},
        "connect": {"connect": 42},
        "send": {"sendto": 44},
        "receive": {"recvfrom": 45},
    },
    "aarch64": {
        "open": {"openat": 56},
        "write": {"write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "sendfile": 71},
        "fsync": {"fsync": 82, "fdatasync": 83},
        "rename": {"renameat": 38, "renameat2": 276},
        "unlink": {"unlinkat": 35},
        "mkdir": {"mkdirat": 34},
        "truncate": {"ftruncate": 46},
        "read": {"read": 63, "pread64": 67},
        "socket": {"socket": 198},
        "connect": {"connect": 203},
        "send": {"sendto": 206},
        "receive": {"recvfrom": 207},
    },
}
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
#: What of each call names its file: a path at an argument, a path below the folder opened at another, or a descriptor.
_PATH = {"open": 0, "creat": 0, "rename": 1, "unlink": 0, "rmdir": 0, "mkdir": 0}
_PATH_AT = {"openat": (0, 1), "renameat": (2, 3), "renameat2": (2, 3), "unlinkat": (0, 1), "mkdirat": (0, 1)}

_HERE, _NOT_HERE = -100, 0xFFFFFF9C
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_NO_NEW_PRIVILEGES, _FILTER, _NEW_LISTENER = 38, 1, 8
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _IS, _HAS_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_QUESTION, _REPLY = struct.Struct("<QIIiIQ6Q"), struct.Struct("<QqiI")
_GO_ON = 1
_INTERNET = (socket.AF_INET, socket.AF_INET6)
#: What differs from run to run in the names of temporary files.
_RANDOM = re.compile(
    r"(?<=^tmp/)[a-z0-9_]{8}$|(?<=/tmp)[a-z0-9_]{8}|(?<=-face-)[a-z0-9_]{8}\b|(?<=-report-)[a-z0-9_]{8}|#\d+"
    r"|(?<=/)\d+-[0-9a-f]{8}(?=\.)|(?<=[./-])[0-9a-f]{8}(?![0-9a-f])"
)


def is_possible() -> bool:
    """Say whether this system can hold calls: Linux since 5.5, unless what we run in forbids it."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return False
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            try:
                hold(theirs, ())
            except BaseException:
                os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1] == 0


def hold(line: socket.socket, operations: tuple[str, ...]) -> None:
    """Have these operations of this process, and of all that it starts, wait for the answers of who hears `line`.

    Raises:
        OSError: this system does not let us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program(operations)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 16)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    listener = libc.syscall(_SECCOMP[platform.machine()], _FILTER, _NEW_LISTENER, ctypes.byref(head))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(line, [b"held"], [listener])  # sendmsg is never held
    os.close(listener)


def _program(operations: tuple[str, ...]) -> bytes:
    """Write the filter: ask about the calls of these operations, and about opening only where it may write."""
    machine = platform.machine()
    steps = [(_LOAD, 0, 0, 4), (_IS, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    for operation, calls in _NUMBERS[machine].items():
        for call, number in calls.items() if operation in operations else ():
            if call in ("open", "openat") and "read" not in operations:
                flags = 16 + 8 * (1 if call == "open" else 2)
                steps += [(_IS, 0, 4, number), (_LOAD, 0, 0, flags), (_HAS_ANY, 0, 1, _WRITES)]
                steps += [(_RETURN, 0, 0, _ASK), (_RETURN, 0, 0, _ALLOW)]
            else:
                steps += [(_IS, 0, 1, number), (_RETURN, 0, 0, _ASK)]
    return b"".join(struct.pack("<HBBI", *step) for step in (*steps, (_RETURN, 0, 0, _ALLOW)))


@dataclass(frozen=True, order=True)
class Point:
    """A place where a command can fail: an operation, on which file, for the how-manieth time."""

    operation: str
    path: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.operation} {self.path}" + (f" ({self.nth})" if self.nth > 1 else "")

    @property
    def kind(self) -> tuple[str, str]:
        """What it has in common with others: numbers are all the same."""
        return self.operation, re.sub(r"\d+", "0", self.path)


@dataclass(frozen=True)
class Fault:
    """An error in the place of what should happen at a point.

    Attributes:
        number: the error's.
        lasts: whether whatever takes room below the same folder fails from then on, as on a full disk.
    """

    point: Point
    number: int
    lasts: bool = False

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]}{' from then on' if self.lasts else ''}: {self.point}"


#: What fails on a full disk, and what on a disk that was made read-only.
_TAKES_ROOM = ("open", "write", "mkdir")
_NETWORK = ("socket", "connect", "send", "receive")


class Holder:
    """Answers the calls that are held: it names each, and fails those that are to fail.

    Args:
        listener: the descriptor that `hold` sent.
        watched: folders, by what their paths are called in the names of points.
        fault: what fails.
    """

    def __init__(self, listener: int, watched: dict[str, Path], fault: Fault | None) -> None:
        self.listener, self._watched, self._fault = listener, watched, fault
        self._calls = {
            number: (operation, call)
            for operation, calls in _NUMBERS[platform.machine()].items()
            for call, number in calls.items()
        }
        self._counts: dict[tuple[str, str], int] = {}
        self._sockets: set[str] = set()
        self.points: list[Point] = []
        self.processes: set[int] = set()
        self.has_failed = False

    def answer(self) -> None:
        """Answer one question; there may be none any more, if who asked was killed."""
        buffer = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError:
            return
        number, process, _, call, _, _, *arguments = _QUESTION.unpack(buffer)
        self.processes.add(process)
        try:
            error = self._error_for(process, call, arguments)
        except OSError:  # It has ended meanwhile.
            error = 0
        reply = bytearray(_REPLY.pack(number, 0, -error, 0 if error else _GO_ON))
        try:
            fcntl.ioctl(self.listener, _ANSWER, reply)
        except OSError:
            return

    def _error_for(self, process: int, number: int, arguments: list[int]) -> int:
        operation, call = self._calls[number]
        if operation in _NETWORK:
            path = self._of_network(process, operation, arguments)
        else:
            path = self._named(_path_of(process, call, arguments))
        if path is None:
            return 0
        count = self._counts[operation, path] = self._counts.get((operation, path), 0) + 1
        point = Point(operation, path, count)
        self.points.append(point)
        fault = self._fault
        if fault is None:
            return 0
        if point == fault.point:
            self.has_failed = True
            return fault.number
        if not (self.has_failed and fault.lasts):
            return 0
        is_network = operation in _NETWORK and fault.point.operation in _NETWORK
        root = path.partition("/")[0] == fault.point.path.partition("/")[0]
        return fault.number if is_network or (root and operation in _TAKES_ROOM) else 0

    def _named(self, path: str | None) -> str | None:
        """Name a path below a watched folder, without what is random in it; None for all others."""
        for name, folder in self._watched.items():
            if path is not None and path.startswith(f"{folder}"):
                below = path[len(str(folder)) :].removesuffix(" (deleted)")
                if not below or below.startswith("/"):
                    return _RANDOM.sub("*", name + below)
        return None

    def _of_network(self, process: int, operation: str, arguments: list[int]) -> str | None:
        if operation == "socket":
            return "internet" if arguments[0] in _INTERNET else None
        here = _link(process, arguments[0])
        if operation == "connect":
            family = struct.unpack("<H", _memory(process, arguments[1], 2))[0]
            if family in _INTERNET:
                self._sockets.add(here)
        return "internet" if here in self._sockets else None


def _path_of(process: int, call: str, arguments: list[int]) -> str | None:
    if call in _PATH_AT:
        folder, path = _PATH_AT[call]
        return _joined(process, arguments[folder], arguments[path])
    if call in _PATH:
        return _joined(process, _NOT_HERE, arguments[_PATH[call]])
    return _link(process, arguments[0])


def _joined(process: int, folder: int, address: int) -> str | None:
    path = os.fsdecode(_memory(process, address, 4096).partition(b"\0")[0])
    if not path.startswith("/"):
        is_here = folder & 0xFFFFFFFF == _HERE & 0xFFFFFFFF
        path = f"{os.readlink(f'/proc/{process}/cwd') if is_here else _link(process, folder)}/{path}"
    return os.path.normpath(path)


def _link(process: int, descriptor: int) -> str:
    return os.readlink(f"/proc/{process}/fd/{descriptor & 0xFFFFFFFF}")


def _memory(process: int, address: int, size: int) -> bytes:
    """Read what lies there; less if that is where its memory ends.

    Raises:
        OSError: nothing is there any more.
    """
    memory = os.open(f"/proc/{process}/mem", os.O_RDONLY)
    try:
        read = os.pread(memory, min(size, 4096 - address % 4096), address)
        if not read:
            raise ProcessLookupError
        if len(read) < size:
            with suppress(OSError):
                read += os.pread(memory, size - len(read), address + len(read))
        return read
    finally:
        os.close(memory)
