"""Decoding in child processes, since a decoder in C cannot be interrupted, may crash, and prints what it likes.

So every picture is decoded, and encoded, in a child (`apart_child`): there are up to two for each process of ours,
started with the first picture that needs one and used for all that follow. The system bounds a child's memory, its
processor time and the time that it takes, by the size of each picture, and its stderr goes nowhere. What kills two
children in a row, or does not end, costs that picture and nothing else. Only what `jpeg` can tell of a JPEG by its
structure needs no decoder.

Over a socket go, either way, the lengths of what follows, a JSON object, and bytes.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from laion_face_builder.errors import PictureError
from laion_face_builder.images.reasons import Reason
from laion_face_builder.parallel import python

#: Lengths of the object and of the bytes.
LENGTHS = struct.Struct("<QQ")
#: In an answer: the bytes are those that were asked about, and are not sent again.
SAME = "is_same"
_COMMAND = python("-m", "laion_face_builder.images.apart_child")
#: Children of a process at most.
_CHILDREN = 2
#: Seconds that one picture may take, whatever the decoder waits for; the system ends the child then.
PATIENCE = 300
#: Seconds after which a child is ended that its own system has not ended: it was stopped, or another has its time.
_LONGEST = 2.0 * PATIENCE
#: Seconds that dying may take.
_DYING = 10.0
#: What libraries would reserve for threads they do not need counts as memory. And glibc gives back the memory of every
#: picture at its end, to ask for it again: a third of a WebP's time.
_ENVIRONMENT = {
    **{"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    **{"MALLOC_MMAP_THRESHOLD_": f"{1 << 24}", "MALLOC_TRIM_THRESHOLD_": f"{1 << 26}"},
}
#: How a child ends that took too long, and how one that somebody else ended: for want of memory, nearly always.
_OUT_OF_TIME = {
    -signal.SIGXCPU: "it takes more processor time than a picture of its size",
    -signal.SIGALRM: f"its decoder did not end within {PATIENCE} s",
}
_ENDED = {-signal.SIGKILL, -signal.SIGTERM}


class DecoderProcess:
    """The children, replaced when they die. Threads take turns; a forked process starts its own.

    Args:
        command: starts a child.
    """

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._forget(())
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: self._forget(self._children))
        atexit.register(self.close)

    def call(self, work: str, data: bytes, **how: Any) -> tuple[dict[str, Any], bytes]:
        """Have a child do `work` with a picture.

        Args:
            work: one of `apart_child.WORK`.
            data: the picture.
            how: the work's other arguments, as JSON has them.

        Returns:
            What the work gives: values, and bytes.

        Raises:
            PictureError: what the work raises; "decode_timeout", "too_much_memory"; "crashed_decoder": two children
                died of it; "internal": none can be started.
        """
        with self._turns:
            for _ in range(2):  # a child may have died of something else
                try:
                    values, body = self._asked({"work": work, **how}, data)
                except TimeoutError:
                    raise PictureError(Reason.DECODE_TIMEOUT, f"no answer in {_LONGEST:g} s") from None
                except _Death as death:
                    code = death.code
                    continue
                except OSError as error:
                    raise PictureError(Reason.INTERNAL, f"no process can be started for it: {error}") from error
                if "reason" in values:
                    raise PictureError(values["reason"], values["detail"])
                return values, data if values.pop(SAME, False) else body
        reason = Reason.TOO_MUCH_MEMORY if code in _ENDED else Reason.CRASHED_DECODER
        raise PictureError(reason, f"the decoder's process ended with {code}")

    def start(self) -> None:
        """Start a child, if there is none, and wait for nothing: what it imports takes a while."""
        with suppress(OSError):  # whoever needs it will hear of it
            child = self._idle() or self._started()
            with self._lock:
                self._free.append(child)

    def rewritten(self, work: str, data: bytes, **how: Any) -> bytes:
        """Have a child rewrite a picture; return `data` itself if nothing changes. Otherwise as `call`."""
        return self.call(work, data, **how)[1]

    def close(self) -> None:
        """End the children that do nothing."""
        while (child := self._idle()) is not None:
            self._end(child)

    @property
    def pids(self) -> list[int]:
        """The ids of the children."""
        return sorted(child.pid for child in [*self._children])

    def _asked(self, how: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        child = self._idle() or self._started()
        try:
            answer = child.answer(how, data)
        except (EOFError, ConnectionError) as error:
            code = self._end(child, wait=True)
            if code in _OUT_OF_TIME:
                raise PictureError(Reason.DECODE_TIMEOUT, _OUT_OF_TIME[code]) from error
            raise _Death(code) from error
        except BaseException:  # half an answer may be on its way
            self._end(child)
            raise
        with self._lock:
            self._free.append(child)
        return answer

    def _idle(self) -> _Child | None:
        with self._lock:
            return self._free.pop() if self._free else None

    def _started(self) -> _Child:
        child = _Child(self._command)
        with self._lock:
            self._children.add(child)
        return child

    def _end(self, child: _Child, wait: bool = False) -> int:
        with self._lock:
            self._children.discard(child)
        return child.end(wait)

    def _forget(self, children: Iterable[_Child]) -> None:
        """Forget the children in a forked process: they are the parent's."""
        for child in children:
            child.forget()
        self._lock, self._turns = threading.Lock(), threading.BoundedSemaphore(_CHILDREN)
        self._children: set[_Child] = set()
        self._free: list[_Child] = []


class _Death(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Child:
    _process: subprocess.Popen[bytes]

    def __init__(self, command: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_LONGEST)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=os.environ | _ENVIRONMENT,
                    start_new_session=True,  # Ctrl-C is for us, and the child ends with its socket
                )
        except BaseException:
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self, how: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Ask the child, and return its answer.

        Raises:
            EOFError, ConnectionError: the child is dead.
            TimeoutError: the child says nothing.
        """
        request = json.dumps(how).encode()
        self._socket.sendall(LENGTHS.pack(len(request), len(data)) + request)
        self._socket.sendall(data)
        values, body = LENGTHS.unpack(self._received(LENGTHS.size))
        return json.loads(self._received(values)), self._received(body)

    def end(self, wait: bool) -> int:
        """End the child and return its exit code; `wait` if it is dying of itself."""
        self._socket.close()
        if wait:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(_DYING)
        self._process.kill()
        return self._process.wait()

    def forget(self) -> None:
        self._socket.close()
        self._process.returncode = 0  # nothing to wait for, and nothing to warn of

    def _received(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            if not (piece := self._socket.recv(min(length - len(got), 1 << 20))):
                raise EOFError
            got += piece
        return bytes(got)


#: The one for this process.
APART = DecoderProcess()
