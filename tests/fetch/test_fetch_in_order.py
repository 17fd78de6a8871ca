"""Fetching ahead: in order, ahead of the consumer, within its bounds, and gone when it is dropped."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.fetch_in_order import arriving, ordered
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.pictures import Picture
from tests.support.hostile_host import HostileHost
from tests.support.nested import but
from tests.support.waiting import wait_until

LIMITS = but(FetchLimits(), timeout=30.0, retries=0, per_host=64, concurrency=32, allow_private_hosts=True)


@pytest.fixture(scope="module")
def host() -> Iterator[HostileHost]:
    with HostileHost() as found:
        yield found


@pytest.fixture(scope="module")
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(LIMITS) as found:
        yield found


#: Paths of a thousand pictures.
OK = [f"/ok/{number}" for number in range(1000)]


def same(url: str) -> str:
    return url


@pytest.fixture(scope="module", params=[ordered, arriving], ids=["ordered", "arriving"])
def either(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["/ok", "/slow", "/html", "/gone", "/reset", None]), max_size=60),
    st.sampled_from([1, 2, 7, 32, 4096]),
    st.sampled_from([1, 2_000, 10**9]),
)
def test_everything_comes_once_and_in_order(
    host: HostileHost,
    fetcher: Fetcher,
    either: Callable[..., Any],
    kinds: list[str | None],
    lookahead: int,
    room: int,
) -> None:
    items = [(number, kind) for number, kind in enumerate(kinds)]
    found = list(
        either(
            items,
            fetcher,
            url_of=lambda item: host.url(f"{item[1]}/{item[0]}") if item[1] else None,
            lookahead=lookahead,
            max_buffer_bytes=room,
        )
    )
    if either is arriving:
        found.sort(key=lambda one: one[0][0])
    assert [item for item, _ in found] == items
    expected = {"/ok": "picture", "/slow": "picture", "/html": "not_an_image", "/gone": "http_404", "/reset": "reset"}
    for (_, kind), outcome in found:
        if isinstance(outcome, PictureError):
            assert outcome.reason == expected[str(kind)]
        elif outcome is None:
            assert kind is None
        else:
            assert outcome.data == host.picture
            assert expected[str(kind)] == "picture"


def test_a_host_that_hangs_does_not_hold_up_what_is_behind_it() -> None:
    with HostileHost() as host, Fetcher(but(LIMITS, timeout=600)) as fetcher, ThreadPoolExecutor(1) as pool:
        urls = [host.url("/silent")] + [host.url(f"/ok/{number}") for number in range(300)]
        stream = ordered(urls, fetcher, url_of=same)
        first = pool.submit(next, stream)
        # Everything behind it is asked for while it hangs.
        wait_until(lambda: host.asked.total() == 301)
        assert not first.done()
        host.hangs_up.set()
        assert isinstance(first.result(60)[1], PictureError)
        assert all(isinstance(outcome, Picture) for _, outcome in stream)


def test_slow_ones_come_last_and_hold_up_nobody() -> None:
    # One address in ten hangs; the rest, and what has no address, comes before.
    with HostileHost(address="0.0.0.0") as host, Fetcher(but(LIMITS, timeout=600)) as fetcher:
        urls = [host.url(f"/ok/{n}") if n % 10 else host.url("/silent", f"127.0.1.{n}") for n in range(200)]
        items = [None if n % 10 == 5 else url for n, url in enumerate(urls)]
        stream = arriving(items, fetcher, url_of=lambda url: url, lookahead=64)
        found = [next(stream) for _ in range(180)]
        host.hangs_up.set()
        found += stream
    assert sum(outcome is None for _, outcome in found) == 20
    assert sum(isinstance(outcome, Picture) for _, outcome in found) == 160
    assert [isinstance(outcome, PictureError) for _, outcome in found] == [False] * 180 + [True] * 20


def test_silent_hosts_take_no_places_from_others() -> None:
    # As many silent hosts as there are places: what can be had comes long before they are given up.
    with HostileHost(address="0.0.0.0") as host, Fetcher(but(LIMITS, timeout=60, concurrency=4)) as fetcher:
        urls = [host.url("/silent", f"127.0.1.{n}") for n in range(1, 9)] + [host.url(f"/ok/{n}") for n in range(30)]
        stream = arriving(urls, fetcher, url_of=same)
        found = [next(stream)[1] for _ in range(30)]
        stream.close()
    assert all(isinstance(outcome, Picture) for outcome in found)


def test_a_full_buffer_is_emptied_by_whatever_is_taken(fetcher: Fetcher) -> None:
    # The oldest picture hangs, and there is room for three: all others pass it.
    with HostileHost() as host:
        urls = [host.url("/silent"), *(host.url(f"/sized/{n}?bytes=100000") for n in range(40))]
        stream = arriving(urls, fetcher, url_of=same, max_buffer_bytes=300_000)
        found = [next(stream) for _ in range(40)]
        host.hangs_up.set()
        found += stream
        assert host.asked.total() < 60
    assert [isinstance(outcome, Picture) for _, outcome in found] == [True] * 40 + [False]


def test_who_takes_little_asks_for_little(fetcher: Fetcher, either: Callable[..., Any]) -> None:
    # What is fetched ahead doubles with what is taken. Another host may still hear what was asked for before.
    with HostileHost() as host, closing(either(map(host.url, OK), fetcher, url_of=same)) as stream:
        for taken in range(1, 60):
            next(stream)
            most = 16 if taken <= 16 else 32 if taken <= 48 else 64
            assert host.asked.total() <= taken + most


def test_fetching_goes_on_while_the_consumer_is_busy(fetcher: Fetcher, either: Callable[..., Any]) -> None:
    with HostileHost() as host:
        urls = [host.url(f"/ok/{n}") for n in range(400)]
        with closing(either(urls, fetcher, url_of=same, lookahead=100)) as stream:
            taken = [next(stream) for _ in range(16 + 32 + 64 + 1)]
            wait_until(lambda: host.asked.total() >= len(taken) + 64)


def test_no_more_is_pulled_or_asked_for_than_the_lookahead(
    host: HostileHost, fetcher: Fetcher, either: Callable[..., Any]
) -> None:
    pulled = 0

    def items() -> Iterator[str]:
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield host.url(f"/ok/{number}")

    stream = either(items(), fetcher, url_of=same, lookahead=50)
    for taken in range(1, 20):
        next(stream)
        assert pulled <= taken + 50
    del stream


def test_items_that_need_no_network_do_not_pile_up(fetcher: Fetcher, either: Callable[..., Any]) -> None:
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for number in range(1, 100_000):
            pulled = number
            yield number

    stream = either(items(), fetcher, url_of=lambda _: None)
    for taken in range(1, 2000):
        assert next(stream) == (taken, None)
        assert pulled <= taken + 300
    stream.close()


def test_what_is_held_stays_below_its_bound(fetcher: Fetcher, either: Callable[..., Any]) -> None:
    # 50 pictures of 100 kB and room for ten: the consumer does nothing, and only so many are ever sent.
    with HostileHost() as host:
        urls = [host.url(f"/sized/{n}?bytes=100000") for n in range(50)]
        stream = either(urls, fetcher, url_of=same, max_buffer_bytes=1_000_000)
        next(stream)
        held = stream.gi_frame.f_locals["stream"]._queue
        wait_until(lambda: held.held >= 500_000)
        highest = 0
        for _ in range(40):
            highest = max(highest, held.held)
            time.sleep(0.01)
        assert highest <= 1_000_000
        assert host.asked.total() < 30
        # Nothing hangs: the rest comes as it is taken.
        assert sum(isinstance(outcome, Picture) for _, outcome in stream) == 49
        assert held.held == 0


def test_one_picture_larger_than_the_whole_buffer_still_comes(fetcher: Fetcher, either: Callable[..., Any]) -> None:
    with HostileHost() as host:
        sizes = [300_000, 5_000, 5_000, 400_000, 5_000] * 3
        urls = [host.url(f"/sized/{n}?bytes={size}") for n, size in enumerate(sizes)]
        found = dict(either(urls, fetcher, url_of=same, max_buffer_bytes=50_000))
        assert [len(found[url].data) for url in urls] == sizes


def test_two_streams_of_one_fetcher_never_block_each_other(either: Callable[..., Any]) -> None:
    # One stream has no room left and waits for a consumer who takes turns; the same host serves both, two at a time.
    with HostileHost() as host, Fetcher(but(LIMITS, per_host=2, concurrency=2)) as fetcher:
        urls = [host.url(f"/sized/{n}?bytes=20000") for n in range(60)]
        one = either(urls, fetcher, url_of=same, max_buffer_bytes=50_000)
        other = either(urls, fetcher, url_of=same, max_buffer_bytes=50_000)
        found = [outcome for pair in zip(one, other, strict=True) for _, outcome in pair]
        assert sum(isinstance(outcome, Picture) for outcome in found) == 120


def test_an_error_of_the_items_comes_in_its_place(
    host: HostileHost, fetcher: Fetcher, either: Callable[..., Any]
) -> None:
    def items() -> Iterator[str]:
        yield from [host.url("/ok")] * 3
        raise OSError("the index is gone")

    stream = either(items(), fetcher, url_of=same)
    assert [isinstance(next(stream)[1], Picture) for _ in range(3)] == [True] * 3
    with pytest.raises(OSError, match="the index is gone"):
        next(stream)


def test_the_first_item_does_not_wait_for_all_to_be_pulled(
    host: HostileHost, fetcher: Fetcher, either: Callable[..., Any]
) -> None:
    pulled = 0

    def items() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield host.url(f"/ok/{pulled}")

    stream = either(items(), fetcher, url_of=same, lookahead=100_000)
    next(stream)
    assert pulled < 100_000
    stream.close()


@pytest.mark.parametrize("how", ["close", "drop", "exception"])
def test_dropped_it_ends_what_is_under_way(how: str, either: Callable[..., Any]) -> None:
    # Nothing ends by itself.
    with HostileHost() as host, Fetcher(but(LIMITS, timeout=3600)) as fetcher:
        urls = [host.url("/ok"), *(host.url(f"/silent/{number}") for number in range(100))]
        stream = either(urls, fetcher, url_of=same)
        next(stream)
        wait_until(lambda: host.open >= 8)
        if how == "close":
            stream.close()
        elif how == "exception":
            with pytest.raises(ValueError, match="enough"):
                stream.throw(ValueError("enough"))
        del stream
        gc.collect()
        wait_until(lambda: host.open == 0)
        assert fetcher.submit(host.url("/ok")).result(60)


def test_nothing_is_left_when_the_last_stream_is_dropped(host: HostileHost, either: Callable[..., Any]) -> None:
    before = set(threading.enumerate())
    stream = either([host.url(f"/ok/{n}") for n in range(500)], Fetcher(LIMITS), url_of=same)
    next(stream)
    del stream
    gc.collect()
    wait_until(lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("laion-face")])
