"""A picture host that does everything a picture host should not, on loopback: raw sockets, a thread a connection.

    with HostileHost() as host:
        host.url("/drip")

`asked` counts requests by path, `most_at_once` says how many were answered together.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import socket
import ssl
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from tests.support import hostile_answers

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing itself since Python 3.11

#: Self-signed, for localhost and 127.0.0.1. It protects nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7dJrGGwBY8TYKJv0
1cQ1d/PT4GHCE6f08l5PP5Wf9pWhRANCAAQfaxw7jIa0GTvfW8grwi+f8NYnwTqY
dWxpMH8gUKALE/U7DLUwNqN3kSmRK8gUdMI3wndVzN6jR3TJV/kW/5l2
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUGlzPskQCfto1v62uMtlvdWynr+YwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjE5NDc1OVoYDzIxMjYxMDI5
MTk0NzU5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQfaxw7jIa0GTvfW8grwi+f8NYnwTqYdWxpMH8gUKALE/U7DLUwNqN3
kSmRK8gUdMI3wndVzN6jR3TJV/kW/5l2o28wbTAdBgNVHQ4EFgQUvGi/z3SbHF5G
q+Rsk0ElkWr7Tp4wHwYDVR0jBBgwFoAUvGi/z3SbHF5Gq+Rsk0ElkWr7Tp4wDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgCKIuXZIKQZzhsRALJBDDvICkE/JFUshOfZz91vNib7oCIQC7
4IdfVB2zZSFEDHnNIV0k5Mo6zLWwTIxygIX0tkRWIg==
-----END CERTIFICATE-----
"""


def jpeg(width: int = 48, height: int = 32, colour: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "JPEG")
    return out.getvalue()


@functools.cache
def png_bomb(side: int) -> bytes:
    """Make a PNG of side x side black pixels in a few kilobytes a megapixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def message(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


#: Ports that hosts of this process had.
_HAD: set[int] = set()


def bind_anew(address: str = "127.0.0.1") -> socket.socket:
    """Take a port that no host of this process had before: fetchers remember a site's rules by its port."""
    while True:
        taken = socket.socket()
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        if port not in _HAD:
            _HAD.add(port)
            return taken
        taken.close()


class HostileHost:
    def __init__(self, *, tls: bool = False, address: str = "127.0.0.1") -> None:
        self.asked: Counter[str] = Counter()
        self.agents: list[str] = []
        self.open = self.most_at_once = self._answering = 0
        self.picture = jpeg()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        #: Slow answers come while this is set.
        self.gate = threading.Event()
        self.gate.set()
        #: Silent connections end once this is set.
        self.hangs_up = threading.Event()
        self._listener = bind_anew(address)
        self._listener.listen(512)
        self._scheme = "https" if tls else "http"
        self._tls = _server_context() if tls else None
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.gate.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def url(self, path: str, name: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{name}:{self.port}{path}"

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.open += 1
        try:
            with contextlib.suppress(OSError, ValueError), connection:
                connection.settimeout(20)
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection:
                    while self._answer(connection):
                        pass
        finally:
            with self._lock:
                self.open -= 1

    def _answer(self, connection: socket.socket) -> bool:
        asked = b""
        while b"\r\n\r\n" not in asked:
            piece = connection.recv(65536)
            if not piece:
                return False
            asked += piece
        lines = asked.decode("latin-1").split("\r\n")
        target = urlsplit(lines[0].split()[1])
        with self._lock:
            self.asked[target.path] += 1
            times = self.asked[target.path]
        self.agents += [line.split(": ", 1)[1] for line in lines if line.lower().startswith("user-agent: ")]
        name = target.path.strip("/").split("/")[0].replace("-", "_")
        act: Callable[..., bytes | None] = getattr(self, f"_do_{name}", self._missing)
        query = {key: values[0] for key, values in parse_qs(target.query).items()}
        with self._counted():
            found = act(connection, query, times, target.path)
        if found is None:
            return False
        connection.sendall(found)
        return True

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request until its answer is about to be sent: whoever has the answer may ask for the next one."""
        with self._lock:
            self._answering += 1
            self.most_at_once = max(self._answering, self.most_at_once)
        try:
            yield
        finally:
            with self._lock:
                self._answering -= 1

    def _missing(self, _c: object, _q: object, _t: object, path: str) -> bytes:
        return message(b"no", status="404 Not Found")

    def _do_ok(self, *_: object) -> bytes:
        return message(self.picture)

    def _do_raw(self, connection: socket.socket, _q: object, _t: object, path: str) -> None:
        """Send what `hostile_answers` has under the second part of the path."""
        for piece in hostile_answers.TABLE[path.split("/")[2]](self.picture):
            connection.sendall(piece)

    def _do_slow(self, *_: object) -> bytes:
        self.gate.wait()
        time.sleep(0.05)
        return message(self.picture)

    def _do_sized(self, _c: object, query: dict[str, str], *_: object) -> bytes:
        """Answer with a picture of exactly so many bytes."""
        return message(self.picture + bytes(int(query["bytes"]) - len(self.picture)))

    def _do_packed(self, _c: object, query: dict[str, str], *_: object) -> bytes:
        """Answer with a picture of so many bytes, gzipped to next to none."""
        body = gzip.compress(self.picture + bytes(int(query["bytes"]) - len(self.picture)))
        return message(body, "Content-Encoding: gzip")

    def _do_status(self, _c: object, query: dict[str, str], *_: object) -> bytes:
        return message(b"", status=f"{query['code']} Whatever")

    def _do_tag(self, _c: object, query: dict[str, str], *_: object) -> bytes:
        return message(self.picture, *(f"X-Robots-Tag: {value}" for value in query["v"].split("|")))

    def _do_to(self, _c: object, query: dict[str, str], *_: object) -> bytes:
        return message(b"", f"Location: {query['url']}", "X-Robots-Tag: noindex", status="302 Found")

    def _do_chain(self, _c: object, _q: object, _t: object, path: str) -> bytes:
        left = int(path.rsplit("/", 1)[1])
        return message(b"", f"Location: {f'/chain/{left - 1}' if left > 1 else '/ok'}", status="301 Moved")

    def _do_loop(self, *_: object) -> bytes:
        return message(b"", "Location: /loop", status="302 Found")

    def _do_nowhere(self, *_: object) -> bytes:
        return message(b"", status="302 Found")

    def _do_silent(self, connection: socket.socket, *_: object) -> None:
        connection.settimeout(0.2)
        while not (self._ended.is_set() or self.hangs_up.is_set()):
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    def _do_silent_once(self, connection: socket.socket, _q: object, times: int, _p: object) -> bytes | None:
        if times > 1:
            return message(self.picture)
        self._do_silent(connection)
        return None

    def _do_drip(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(message(b"", length=5_000))
        while not self._ended.wait(0.02):
            connection.sendall(b"\xff")

    def _do_endless(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + self.picture)
        while not self._ended.is_set():
            connection.sendall(bytes(65536))

    def _do_declared(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(message(self.picture, length=10**12))
        self._ended.wait(10)

    def _do_short(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(message(self.picture, length=len(self.picture) + 100))

    def _do_more(self, connection: socket.socket, *_: object) -> None:
        """Send more than Content-Length says."""
        connection.sendall(message(self.picture + b"HTTP/1.1 404 Not Found\r\n\r\n", length=len(self.picture)))

    def _do_chunked(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.picture), self.picture))

    def _do_bad_chunks(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n")

    def _do_garbage(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(b"\x00\x01 this is not HTTP at all\r\n\r\n" * 20)

    def _do_reset(self, connection: socket.socket, *_: object) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _do_reset_once(self, connection: socket.socket, _q: object, times: int, _p: object) -> bytes | None:
        if times > 1:
            return message(self.picture)
        self._do_reset(connection)
        return None

    def _do_fails_once(self, _c: object, query: dict[str, str], times: int, _p: object) -> bytes:
        if times > 1:
            return message(self.picture)
        extra = [f"Retry-After: {query['after']}"] if "after" in query else []
        return message(b"", *extra, status=f"{query['code']} Later")

    def _do_bomb(self, *_: object) -> bytes:
        return message(png_bomb(3_000))

    def _do_cut(self, *_: object) -> bytes:
        return message(self.picture[: len(self.picture) // 2])

    def _do_html(self, *_: object) -> bytes:
        return message(b"<!doctype html><title>gone</title>")

    def _do_headers(self, connection: socket.socket, *_: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not self._ended.is_set():
            connection.sendall(b"X-Padding: " + b"x" * 1000 + b"\r\n")


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "both.pem"
        pem.write_text(CERTIFICATE)
        context.load_cert_chain(pem)
    return context
