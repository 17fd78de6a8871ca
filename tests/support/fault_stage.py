"""Run commands of ours one after the other, each in a fork of a process that has imported everything, calls held.

    with Stage(environment) as stage:
        run = stage.run(Command(("status", "20M")), {"data": folder}, Fault(Point("write", "data/…"), errno.EIO))

A start of Python with all that we import takes a second or two, a fork some milliseconds.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from tests.support.held_calls import Fault, Holder, Point, hold

FILES = ("open", "write", "fsync", "rename", "unlink", "mkdir", "truncate")
NETWORK = ("socket", "connect", "send", "receive")
#: Seconds in which what a command has started has to end after it.
_GRACE = 20.0
#: What commands import on their way; of libraries that may not be installed, what is there.
_IMPORTED = (
    *(
        "torch",
        "matplotlib.pyplot",
        "pycurl",
        "laion_face",
        "datasets.iterable_dataset",
        "fsspec.implementations.local",
    ),
    *(f"laion_face_builder.{name}" for name in ("cli.arguments", "cli.failures", "status", "examples.parts")),
    *(f"laion_face_builder.{name}" for name in ("index.prepare", "index.copying", "publish.publish", "inspect.stats")),
    *(f"laion_face_builder.{name}" for name in ("inspect.show", "verify.verify", "download.shard_worker")),
)
#: A call that raises what users can cause ends as a command does.
_CALLED = """
import sys
from laion_face_builder.errors import LaionFaceError
try:
    exec(compile(sys.argv[1], "called", "exec"))
except LaionFaceError as error:
    sys.exit(f"laion-face: error: {error}")
"""


@dataclass(frozen=True)
class Command:
    """What is run: words after `laion-face`, or Python.

    Attributes:
        held: the operations that are held.
        seconds: after so many it is taken to hang.
    """

    words: tuple[str, ...] = ()
    script: str = ""
    held: tuple[str, ...] = FILES
    seconds: float = 120.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; None if it hung.
        points: all that was held, in order.
        has_failed: whether it came to the fault.
        left: processes that were still there when it had ended.
        seconds: how long it took.
    """

    code: int | None
    output: str
    errors: str
    points: tuple[Point, ...]
    has_failed: bool
    left: int
    seconds: float


class Stage:
    """The process that forks. A context manager.

    Args:
        environment: of all commands.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fault_stage", str(theirs.fileno())],
                env={**environment, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._line = Connection(ours.detach())

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line.close()
        self._process.wait()

    def run(self, command: Command, watched: dict[str, Path], fault: Fault | None = None) -> Ended:
        """Run a command to its end."""
        self._line.send((command, watched, fault))
        ended: Ended = self._line.recv()
        return ended


def _serve(line: Connection) -> None:
    while True:
        try:
            command, watched, fault = line.recv()
        except EOFError:
            return
        # In memory: they are not what is to fail.
        said = [open(os.memfd_create(name), "w+b") for name in ("stdout", "stderr")]  # noqa: SIM115 - closed below
        ours, theirs = socket.socketpair()
        began, child = time.monotonic(), os.fork()
        if child == 0:
            line.close()
            ours.close()
            for number, stream in enumerate(said, 1):
                os.dup2(stream.fileno(), number)
            os.setsid()
            hold(theirs, command.held)
            theirs.close()
            _act(command)
        theirs.close()
        _, (listener, *_), _, _ = socket.recv_fds(ours, 16, 1)
        ours.close()
        holder = Holder(listener, watched, fault)
        code, left = _watch(child, holder, began + command.seconds)
        os.close(listener)
        texts = []
        for stream in said:
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
            stream.close()
        took = time.monotonic() - began
        line.send(Ended(code, texts[0], texts[1], tuple(holder.points), holder.has_failed, left, took))


def _act(command: Command) -> None:
    """Be the command, and end as a process of its own would."""
    sys.argv = ["laion-face", *command.words]
    if command.script:
        sys.argv[1:] = [command.script, *command.words]
        exec(_CALLED, {"__name__": "__main__"})
        sys.exit(0)
    from laion_face_builder.cli import main

    sys.exit(main())


def _watch(child: int, holder: Holder, until: float) -> tuple[int | None, int]:
    """Answer all calls until the child has ended; return its exit code, and how many processes it left behind."""
    poll, end = select.poll(), os.pidfd_open(child)
    poll.register(holder.listener, select.POLLIN)
    poll.register(end, select.POLLIN)
    code: int | None = None
    is_held = True
    while time.monotonic() < until and (is_held or code is None):
        happened = dict(poll.poll(200))
        if happened.get(holder.listener, 0) & select.POLLIN:
            holder.answer()
        elif happened.get(holder.listener, 0) & select.POLLHUP:  # The last process that was held has ended.
            is_held = False
            poll.unregister(holder.listener)
        elif end in happened:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            poll.unregister(end)
            until = min(until, time.monotonic() + _GRACE)
    os.close(end)
    left = [process for process in holder.processes - {child} if _is_there(process)]
    for process in left if code is not None else [*left, child]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    return code, len(left)


def _is_there(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def main() -> None:
    """Serve whoever started this."""
    for module in _IMPORTED:
        with suppress(ImportError):
            importlib.import_module(module)
    _serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    from tests.support import fault_stage  # noqa: PLW0406 - what it sends is of that module, not of __main__

    fault_stage.main()
