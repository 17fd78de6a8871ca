"""A full buffer: bodies wait where they are, nothing is asked for twice, nobody waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from laion_face_builder.fetch.fetch_in_order import arriving, ordered
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.pictures import Picture
from tests.support.hostile_host import HostileHost, jpeg
from tests.support.nested import but
from tests.support.waiting import wait_until

LIMITS = but(FetchLimits(), timeout=30.0, retries=0, per_host=8, concurrency=8, allow_private_hosts=True)
#: Far above what a picture is guessed to weigh: more are begun than there is room for.
SIZE = 900_000


@pytest.fixture(scope="module", params=[ordered, arriving], ids=["ordered", "arriving"])
def either(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def same(url: str) -> str:
    return url


@pytest.mark.parametrize("path", ["/sized/{}?bytes=900000", "/packed/{}?bytes=900000"])
def test_nothing_is_asked_for_twice_and_time_stands_still(either: Callable[..., Any], path: str) -> None:
    limits = but(LIMITS, timeout=5.0)
    with HostileHost() as host, Fetcher(limits) as fetcher:
        urls = [host.url(path.format(number)) for number in range(24)]
        stream = either(urls, fetcher, url_of=same, max_buffer_bytes=1_000_000)
        found = [next(stream)]
        queue = stream.gi_frame.f_locals["stream"]._queue
        time.sleep(1.2 * limits.options.timeout)  # as long as would end them, if time went on
        # One piece of each that was under way may be too much: 128 kB as they came, twice as much unpacked. And the
        # one that was waited for when another came comes whole.
        assert queue.held <= 1_000_000 + LIMITS.options.concurrency * (1 << 18) + SIZE
        found += stream
        assert {len(outcome.data) for _, outcome in found} == {SIZE}
        assert sorted(host.asked.values()) == [1] * len(urls)
        assert queue.held == 0


def test_who_comes_late_gets_past_those_that_wait(either: Callable[..., Any]) -> None:
    # The first picture is told to come again in a second; meanwhile others fill buffer, places and connections.
    with HostileHost() as host, Fetcher(but(LIMITS, timeout=20, retries=1, per_host=2, concurrency=2)) as fetcher:
        urls = [host.url("/fails-once/x?code=503&after=1"), *(host.url(f"/sized/{n}?bytes=900000") for n in range(10))]
        found = dict(either(urls, fetcher, url_of=same, max_buffer_bytes=700_000))
        assert all(isinstance(outcome, Picture) for outcome in found.values())
        assert found[urls[0]].data == jpeg()
        assert host.asked.total() == len(urls) + 1


def test_dropping_a_stream_whose_bodies_wait_leaves_nothing(either: Callable[..., Any]) -> None:
    with HostileHost() as host, Fetcher(but(LIMITS, timeout=20)) as fetcher:
        urls = [host.url(f"/sized/{number}?bytes=900000") for number in range(24)]
        stream = either(urls, fetcher, url_of=same, max_buffer_bytes=1_000_000)
        next(stream)
        queue = stream.gi_frame.f_locals["stream"]._queue
        wait_until(lambda: queue.held >= SIZE)
        stream.close()
        # Every place and every connection is free again.
        again = list(either(urls, fetcher, url_of=same, max_buffer_bytes=10**9))
        assert {type(outcome) for _, outcome in again} == {Picture}
