"""Decoding in a child process, for what is rare and whose work nothing in the file bounds: TIFF, AVIF, packed BMP.

A decoder in C cannot be interrupted, may crash, and writes what it likes to the terminal. So there is one child for
each process of ours (`apart_child`), started with the first such picture and used for all that follow. The system
bounds its memory and its processor time by the size of each picture, and its stderr goes nowhere. The other formats,
nearly all pictures, are bounded by `structure`, and decoded where they are.

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
from collections.abc import Sequence
from typing import Any

from laion_face_builder.errors import PictureError
from laion_face_builder.images.reasons import Reason
from laion_face_builder.parallel import python

#: Lengths of the object and of the bytes.
LENGTHS = struct.Struct("<QQ")
_COMMAND = python("-m", "laion_face_builder.images.apart_child")
#: Seconds without an answer. The child's processor time ends it long before, unless it waits for something.
_PATIENCE = 300.0
#: What libraries would reserve for threads they do not need counts as memory.
_ONE_THREAD = {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def is_decoded_apart(data: bytes) -> bool:
    """Say whether a picture with these bytes is to be decoded in the child process."""
    if data.startswith(b"BM"):
        return data[30:34] not in (bytes(4), b"\3\0\0\0")  # neither plain nor with masks: run lengths
    return data.startswith((b"II", b"MM")) or data[4:8] == b"ftyp"


class DecoderProcess:
    """The child process, replaced when it dies. Threads take turns; a forked process starts its own.

    Args:
        command: starts the child.
    """

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._child: _Child | None = None
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def call(self, work: str, data: bytes, **how: Any) -> tuple[dict[str, Any], bytes]:
        """Have the child do `work` with a picture.

        Args:
            work: one of `apart_child.WORK`.
            data: the picture.
            how: the work's other arguments, as JSON has them.

        Returns:
            What the work gives: values, and bytes.

        Raises:
            PictureError: what the work raises; "slow_decode", "too_much_memory"; "crashed_decoder": two children died
                of it, or none can be started.
        """
        with self._lock:
            for _ in range(2):  # a child may have died of something else
                try:
                    values, body = self._asked({"work": work, **how}, data)
                except TimeoutError:
                    raise PictureError(Reason.SLOW_DECODE, f"no answer in {_PATIENCE:g} s") from None
                except (EOFError, ConnectionError) as error:
                    died = str(error)
                    continue
                except OSError as error:
                    raise PictureError(Reason.CRASHED_DECODER, f"no process can be started for it: {error}") from error
                if "reason" in values:
                    raise PictureError(values["reason"], values["detail"])
                return values, body
        raise PictureError(Reason.CRASHED_DECODER, died)

    def rewritten(self, work: str, data: bytes, **how: Any) -> bytes:
        """Have the child rewrite a picture; return `data` itself if nothing changes. Otherwise as `call`."""
        written = self.call(work, data, **how)[1]
        return data if written == data else written

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _asked(self, how: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        child = self._child = self._child or _Child(self._command)
        try:
            return child.answer(how, data)
        except (EOFError, ConnectionError) as error:
            code = self._end(wait=True)
            if code == -signal.SIGXCPU:
                raise PictureError(
                    Reason.SLOW_DECODE, "it takes more processor time than a picture of its size"
                ) from error
            raise EOFError(f"the decoder's process ended with {code}") from error
        except BaseException:  # half an answer may be on its way
            self._end()
            raise

    def _end(self, wait: bool = False) -> int | None:
        child, self._child = self._child, None
        return child.end(wait) if child is not None else None

    def _forget(self) -> None:
        """Forget the child in a forked process: it is the parent's."""
        self._lock = threading.Lock()
        if self._child is not None:
            self._child.forget()
            self._child = None


class _Child:
    _process: subprocess.Popen[bytes]

    def __init__(self, command: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_PATIENCE)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=os.environ | _ONE_THREAD,
                    start_new_session=True,  # Ctrl-C is for us, and the child ends with its socket
                )
        except BaseException:
            self._socket.close()
            raise

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
        if not wait:
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
