"""Our own fetching on loopback: pictures/s in order, checked but not decoded, and CPU per picture of the whole process.

    python benchmarks/bench_fetch.py [--seconds 8] [--latency 0 0.1] [--failing 0.3] [--busy]

`--busy` runs pure Python in the consumer's thread all the while, as a training loop that leaves no GIL free would.
Also: what one check costs (quick and full), and what one hit of the cache costs.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import picture_server
from PIL import Image

from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.fetch_in_order import ordered
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images import jpeg, pictures
from laion_face_builder.images.pictures import Picture
from laion_face_builder.options import FetchOptions

_REPEATS = 300


def urls(port: int, failing: float) -> Iterator[str]:
    """Yield addresses without end; a share of them is gone."""
    every = round(1 / failing) if failing else 0
    number = 0
    while True:
        kind = "gone" if every and number % every == 0 else "ok"
        yield f"http://127.0.0.{1 + number % 32}:{port}/{kind}/{number}.jpg"
        number += 1


def stream(port: int, given: argparse.Namespace, concurrency: int) -> tuple[float, float]:
    """Measure pictures a second, and CPU microseconds a picture."""
    limits = FetchLimits(FetchOptions(concurrency=concurrency, per_host=16, allow_private_hosts=True))
    with Fetcher(limits) as fetcher:
        found = ordered(urls(port, given.failing), fetcher, url_of=lambda url: url)
        for _ in range(500):  # connections are open, the look-ahead is full
            next(found)
        before, begun, done = resource.getrusage(resource.RUSAGE_SELF), time.monotonic(), 0
        while time.monotonic() < begun + given.seconds:
            done += isinstance(next(found)[1], Picture)
        after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done / took, 1e6 * cpu / max(done, 1)


def microseconds(action: Callable[[], object]) -> float:
    """Return a call's CPU microseconds in this thread, the best of five rounds."""
    rounds = []
    for _ in range(5):
        begun = time.thread_time()
        for _ in range(_REPEATS):
            action()
        rounds.append((time.thread_time() - begun) / _REPEATS * 1e6)
    return min(rounds)


def _progressive(data: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "JPEG", progressive=True, quality=85)
    return out.getvalue()


def parts(size: int) -> Iterator[tuple[str, float]]:
    """Yield each step other than the network's, and its CPU microseconds."""
    data = picture_server.picture(size)
    progressive = _progressive(data)
    yield "quick check, baseline JPEG", microseconds(lambda: jpeg.quick(data))
    yield "quick check, progressive JPEG", microseconds(lambda: jpeg.quick(progressive))
    yield "full check (decodes)", microseconds(lambda: pictures.inspect(data))
    yield "full check, progressive", microseconds(lambda: pictures.inspect(progressive))
    picture = pictures.inspect(data)
    with tempfile.TemporaryDirectory() as folder:
        cache = PictureCache(folder)
        for number in range(_REPEATS):
            cache.put(str(number), picture)
        numbers = iter(range(10**9))
        yield "cache hit", microseconds(lambda: cache.get(str(next(numbers) % _REPEATS)))
        yield "cache put", microseconds(lambda: cache.put(str(next(numbers)), picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.1])
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--failing", type=float, default=0.0, help="share of the addresses that are gone")
    parser.add_argument("--busy", action="store_true", help="pure Python runs beside it")
    given = parser.parse_args()
    for name, cost in parts(46_000):
        sys.stdout.write(f"{name}: {cost:,.0f} us\n")
    if given.busy:
        threading.Thread(target=_spin, daemon=True).start()
    for latency in given.latency:
        with picture_server.running(latency) as port:
            per_second, cpu = stream(port, given, given.concurrency)
        sys.stdout.write(
            f"latency {latency * 1000:.0f} ms: {per_second:,.0f} pictures/s, {cpu:,.0f} us CPU a picture\n"
        )


def _spin() -> None:
    while True:
        sum(range(100))


if __name__ == "__main__":
    main()
