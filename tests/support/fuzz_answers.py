"""Damage the answers of hosts, good ones and bad ones, and fetch them from a raw socket by the one engine."""

from __future__ import annotations

import io
import itertools
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from tests.support.fuzz_child import READ, SilentError
from tests.support.hostile_answers import BAD, GOOD
from tests.support.mutations import mutated
from tests.support.nested import but

_LIMITS = but(
    FetchLimits(),
    timeout=1.0,
    retries=0,
    redirects=2,
    max_bytes=2_000_000,
    max_pixels=1_000_000,
    also_public=("127.0.0.0/8",),
)
#: Bytes of an answer that are changed at most; some go on for ever.
_MOST = 100_000
_LINES = (
    *(b"Content-Length: -1", b"Content-Length: 9", b"Content-Length: 99999999999999999999", b"Content-Length: 1e3"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: deflate, gzip", b"Content-Encoding: br"),
    *(b"Location: /", b"Location: //\xff", b"Location: http://[", b"Location: file:///etc/passwd", b"Location:"),
    *(b"Connection: close", b"Connection: upgrade", b"Upgrade: h2c", b"Trailer: X", b"Content-Range: bytes 0-9/10"),
    *(b" folded", b"X" * 9000, b"X: " + b"y" * 90_000, b"\0: \0", b"X-Robots-Tag: noai", b"Retry-After: 99999999"),
)
_STATUS = (
    *(b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/2 200", b"HTTP/9.9 200 OK", b"ICY 200 OK", b"HTTP/1.1 2000 OK"),
    *(b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 x", b"HTTP/1.1 206 x", b"HTTP/1.1 304 x", b"HTTP/1.1 302 x"),
    *(b"HTTP/1.1 -1", b"HTTP/1.1", b"", b"HTTP/1.1 503 x", b"HTTP/1.1 999 x", b"http/1.1 200 ok"),
)


@dataclass(frozen=True)
class Answers:
    """Changed answers: each brings a picture that is one, or ends with a reason, in time and within bounds of bytes.

    Attributes:
        seed: other seeds have other changes.
    """

    seed: int = 0

    def ready(self, folder: Path) -> Callable[[int], str]:
        """See `fuzz_child.Trial`."""
        host, fetcher, picture = _Host(), Fetcher(_LIMITS), _picture()
        answers = [*(make for make in GOOD.values()), *(make for _, make in BAD.values())]

        def attempt(number: int) -> str:
            rng = random.Random(f"{self.seed} {number}")
            answer = b"".join(itertools.islice(rng.choice(answers)(picture), 40))[:_MOST]
            host.next = _changed(rng, answer)
            try:
                found = fetcher.submit(f"{host.url}/{number}").result(30)
            except PictureError as error:
                if error.reason == "internal":
                    raise
                return error.reason
            if len(found.data) > 2_000_000 or found.width * found.height > 1_000_000:
                raise SilentError(f"{len(found.data)} bytes, {found.width} x {found.height} pixels")
            return READ

        return attempt


def _changed(rng: random.Random, answer: bytes) -> bytes:
    head, blank, body = answer.partition(b"\r\n\r\n")
    if rng.random() < 0.6:
        lines = head.split(b"\r\n")
        for _ in range(rng.choice([1, 1, 2, 5])):
            kind = rng.randrange(4)
            if kind == 0:
                lines[0] = rng.choice(_STATUS)
            elif kind == 1:
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_LINES))
            elif kind == 2 and len(lines) > 1:
                del lines[rng.randrange(1, len(lines))]
            else:
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(lines))
        head = rng.choice([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]).join(lines)
    changed = head + blank + body
    if rng.random() < 0.6:
        changed = mutated(rng, changed, 0, rng.choice([20, len(head), len(head) + 100, None]))
    return changed[: rng.randrange(len(changed) + 1)] if changed and rng.random() < 0.1 else changed


def _picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(out, "JPEG")
    return out.getvalue()


class _Host:
    """Answers each connection with the bytes that are next, and closes it."""

    def __init__(self) -> None:
        self.next = b""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(2)
                connection.recv(65536)
                connection.sendall(self.next)
                # What is unread when a socket is closed resets it, and takes the answer along.
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)
