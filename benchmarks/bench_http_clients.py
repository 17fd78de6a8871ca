"""HTTP clients side by side: pictures/s and the client's CPU per picture, from a server in a process of its own.

    python benchmarks/bench_http_clients.py [NAME …] [--seconds 6] [--in-flight 256] [--latency 0 0.1]

Each candidate runs in a process of its own, keeps connections alive and reads every body whole. Names of which the
library is not installed are left out and named. The numbers and the choice made from them are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import io
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import picture_server

Fetched = int


class Clock:
    """Gives addresses until the time is over."""

    def __init__(self, port: int, seconds: float) -> None:
        self._urls = itertools.cycle(picture_server.addresses(port, 10_000))
        self._until = time.monotonic() + seconds

    def urls(self) -> Iterator[str]:
        while time.monotonic() < self._until:
            yield next(self._urls)


def one_by_one(clock: Clock, in_flight: int) -> Fetched:
    import requests

    return sum(bool(requests.get(url, timeout=30).content) for url in clock.urls())


def requests_threads(clock: Clock, in_flight: int) -> Fetched:
    import requests

    def worker(_: int) -> int:
        with requests.Session() as session:
            return sum(bool(session.get(url, timeout=30).content) for url in clock.urls())

    with ThreadPoolExecutor(in_flight) as pool:
        return sum(pool.map(worker, range(in_flight)))


def urllib3_threads(clock: Clock, in_flight: int) -> Fetched:
    import urllib3

    pools = urllib3.PoolManager(num_pools=64, maxsize=in_flight)

    def worker(_: int) -> int:
        return sum(bool(pools.request("GET", url, timeout=30).data) for url in clock.urls())

    with ThreadPoolExecutor(in_flight) as pool:
        return sum(pool.map(worker, range(in_flight)))


def aiohttp_client(clock: Clock, in_flight: int) -> Fetched:
    return asyncio.run(_aiohttp(clock, in_flight))


def aiohttp_uvloop(clock: Clock, in_flight: int) -> Fetched:
    import uvloop  # type: ignore[import-not-found,unused-ignore]  # a candidate, not a dependency

    return int(uvloop.run(_aiohttp(clock, in_flight)))


async def _aiohttp(clock: Clock, in_flight: int) -> Fetched:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=in_flight, ttl_dns_cache=600)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def worker() -> int:
            done = 0
            for url in clock.urls():
                async with session.get(url) as answer:
                    done += bool(await answer.read())
            return done

        return sum(await asyncio.gather(*(worker() for _ in range(in_flight))))


def httpx_client(clock: Clock, in_flight: int) -> Fetched:
    import httpx

    async def run() -> int:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def worker() -> int:
                done = 0
                for url in clock.urls():
                    # With hundreds in flight it loses a connection now and then; the others never do.
                    with suppress(httpx.TransportError):
                        done += bool((await client.get(url)).content)
                return done

            return sum(await asyncio.gather(*(worker() for _ in range(in_flight))))

    return asyncio.run(run())


def _curl_handle(pycurl: Any) -> Any:
    curl = pycurl.Curl()
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.TIMEOUT_MS, 30_000)
    curl.setopt(pycurl.BUFFERSIZE, 131_072)
    return curl


def pycurl_perform(clock: Clock, in_flight: int) -> Fetched:
    import pycurl

    multi, urls, done, flying = pycurl.CurlMulti(), clock.urls(), 0, 0
    multi.setopt(pycurl.M_MAXCONNECTS, in_flight)

    def start(curl: Any) -> int:
        if (url := next(urls, None)) is None:
            return 0
        curl.body = io.BytesIO()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.WRITEDATA, curl.body)
        multi.add_handle(curl)
        return 1

    for _ in range(in_flight):
        flying += start(_curl_handle(pycurl))
    while flying:
        multi.perform()
        for finished in _finished(multi):
            done += bool(finished.body.getvalue())
            flying += start(finished) - 1
        multi.select(1.0)
    return done


def pycurl_socket_action(clock: Clock, in_flight: int) -> Fetched:
    return asyncio.run(_pycurl_asyncio(clock, in_flight))


def pycurl_uvloop(clock: Clock, in_flight: int) -> Fetched:
    import uvloop  # type: ignore[import-not-found,unused-ignore]  # a candidate, not a dependency

    return int(uvloop.run(_pycurl_asyncio(clock, in_flight)))


async def _pycurl_asyncio(clock: Clock, in_flight: int) -> Fetched:
    import pycurl

    loop, multi = asyncio.get_running_loop(), pycurl.CurlMulti()
    waiting: dict[Any, asyncio.Future[None]] = {}
    timers: list[asyncio.TimerHandle] = []

    def act(socket: int, events: int) -> None:
        multi.socket_action(socket, events)
        for finished in _finished(multi):
            waiting.pop(finished).set_result(None)

    def on_socket(what: int, socket: int, *_: object) -> None:
        for wanted, add, remove, event in (
            (pycurl.POLL_IN, loop.add_reader, loop.remove_reader, pycurl.CSELECT_IN),
            (pycurl.POLL_OUT, loop.add_writer, loop.remove_writer, pycurl.CSELECT_OUT),
        ):
            if what != pycurl.POLL_REMOVE and what & wanted:
                add(socket, act, socket, event)
            else:
                remove(socket)

    def on_timer(milliseconds: int) -> None:
        while timers:
            timers.pop().cancel()
        if milliseconds >= 0:
            timers.append(loop.call_later(milliseconds / 1000, act, pycurl.SOCKET_TIMEOUT, 0))

    multi.setopt(pycurl.M_SOCKETFUNCTION, on_socket)
    multi.setopt(pycurl.M_TIMERFUNCTION, on_timer)
    multi.setopt(pycurl.M_MAXCONNECTS, in_flight)

    async def worker() -> int:
        curl, done = _curl_handle(pycurl), 0
        for url in clock.urls():
            body = io.BytesIO()
            curl.setopt(pycurl.URL, url)
            curl.setopt(pycurl.WRITEDATA, body)
            waiting[curl] = loop.create_future()
            multi.add_handle(curl)
            await waiting[curl]
            done += bool(body.getvalue())
        return done

    return sum(await asyncio.gather(*(worker() for _ in range(in_flight))))


def _finished(multi: Any) -> Iterator[Any]:
    more = 1
    while more:
        more, good, bad = multi.info_read()
        for _, number, message in bad:
            raise OSError(f"{number}: {message}")
        for curl in good:
            multi.remove_handle(curl)
            yield curl


#: Name: the library it needs, and how it fetches.
CANDIDATES: dict[str, tuple[str, Callable[[Clock, int], Fetched]]] = {
    "requests-one-by-one": ("requests", one_by_one),
    "requests-threads": ("requests", requests_threads),
    "urllib3-threads": ("urllib3", urllib3_threads),
    "httpx": ("httpx", httpx_client),
    "aiohttp": ("aiohttp", aiohttp_client),
    "aiohttp-uvloop": ("uvloop", aiohttp_uvloop),
    "pycurl-perform": ("pycurl", pycurl_perform),
    "pycurl-socket-action": ("pycurl", pycurl_socket_action),
    "pycurl-uvloop": ("uvloop", pycurl_uvloop),
}


def measure(name: str, port: int, in_flight: int, seconds: float) -> dict[str, float]:
    """Measure one candidate in this process."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    done = CANDIDATES[name][1](Clock(port, seconds), in_flight)
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"per_second": done / took, "cpu_us": 1e6 * cpu / max(done, 1)}


def measured_in_child(name: str, port: int, in_flight: int, seconds: float) -> dict[str, float]:
    """Measure one candidate in a process of its own, so that none warms or burdens the next."""
    command = [sys.executable, __file__, name, "--port", str(port), "--in-flight", str(in_flight)]
    ran = subprocess.run([*command, "--seconds", str(seconds)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CANDIDATES))
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 0.1])
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.port:
        sys.stdout.write(json.dumps(measure(given.names[0], given.port, given.in_flight, given.seconds)))
        return
    sys.stdout.write("| client | latency ms | pictures/s | client CPU us/picture |\n|---|---|---|---|\n")
    for latency in given.latency:
        with picture_server.running(latency) as port:
            for name in given.names or CANDIDATES:
                if importlib.util.find_spec(CANDIDATES[name][0]) is None:
                    sys.stderr.write(f"{name}: {CANDIDATES[name][0]} is not installed\n")
                    continue
                found = measured_in_child(name, port, given.in_flight, given.seconds)
                sys.stdout.write(
                    f"| {name} | {latency * 1000:.0f} | {found['per_second']:,.0f} | {found['cpu_us']:,.0f} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
