"""A picture host for measurements: `python benchmarks/picture_server.py --latency 0.1`, a process of its own.

Every answer is written before it is asked for, so that the server is never what is measured. It listens on all of
127.0.0.0/8: "127.0.0.7" and "127.0.0.8" are two hosts for whoever counts connections per host.

    /ok/ANYTHING     200 with a JPEG
    /gone/ANYTHING   404
    /stuck/ANYTHING  never answered

The first line on stdout is the port.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def picture(size: int) -> bytes:
    """Make a JPEG of about `size` bytes: a smooth drawing under noise, about four pixels for every byte."""
    side = int((size * 4.2) ** 0.5)
    y, x = np.mgrid[0:side, 0:side] * (255 / side)
    noise = np.random.default_rng(0).normal(0, 14, (side, side, 3))
    pixels = np.stack([x, y, (x + y) / 2], axis=-1) + noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    versions = []
    for quality in range(20, 98, 3):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        versions.append(out.getvalue())
    return min(versions, key=lambda data: abs(len(data) - size))


class _Answers(asyncio.Protocol):
    def __init__(self, body: bytes, latency: float) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        self._found, self._latency = head.encode() + body, latency
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._asked += data
        while (end := self._asked.find(b"\r\n\r\n")) >= 0:
            asked, self._asked = self._asked[:end], self._asked[end + 4 :]
            if asked.startswith(b"GET /stuck"):
                continue
            answer = self._found if asked.startswith(b"GET /ok") else _NOT_FOUND
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._write, answer)
            else:
                self._write(answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def _serve(size: int, latency: float) -> None:
    body = picture(size)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answers(body, latency), "0.0.0.0", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Ends with whoever started it.
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def running(latency: float = 0.0, size: int = 46_000) -> Iterator[int]:
    """Start the server as a child and yield its port."""
    command = [sys.executable, __file__, "--latency", str(latency), "--bytes", str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()


def addresses(port: int, count: int, hosts: int = 32, kind: str = "ok") -> list[str]:
    """Return `count` addresses of pictures, spread evenly over `hosts` hosts."""
    return [f"http://127.0.0.{1 + number % hosts}:{port}/{kind}/{number}.jpg" for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bytes", type=int, default=46_000, help="size of a picture")
    given = parser.parse_args()
    asyncio.run(_serve(given.bytes, given.latency))


if __name__ == "__main__":
    main()
