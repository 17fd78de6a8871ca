"""Resolving names: which addresses may be connected to, how often is asked, and what a slow answer costs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.addresses import AddressRule
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.flight import Flights
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import NoAnswer, Resolver
from tests.support.hostile_host import HostileHost
from tests.support.nested import but
from tests.support.waiting import wait_until


def resolved(host: str, **options: Any) -> list[str]:
    async def ask() -> list[str]:
        resolver = Resolver(**options)
        try:
            return await resolver.resolve(host, 80)
        finally:
            resolver.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0", "::1", "::ffff:127.0.0.1",
     "localhost", "LOCALHOST", "localhost.", "169.254.169.254", "\uff11\uff12\uff17.0.0.1"],
)  # fmt: skip
def test_every_spelling_of_a_private_address_is_refused(host: str) -> None:
    with pytest.raises(PictureError) as caught:
        resolved(host)
    # Not every system knows every spelling; none may connect.
    assert caught.value.reason in ("private_address", "dns")
    if host in ("127.0.0.1", "127.1", "2130706433", "::1", "localhost"):
        assert caught.value.reason == "private_address"


@pytest.mark.parametrize(
    "host", ["", "a b", "a\0.example", "a/b", "a@b", "a" * 64 + ".example", "a..example", "\ud800"]
)
def test_what_is_no_host_name(host: str) -> None:
    with pytest.raises(PictureError) as caught:
        resolved(host, lookup=lambda _: ["8.8.8.8"])
    assert caught.value.reason == "bad_url"


def test_literals_and_injected_rules() -> None:
    assert resolved("8.8.8.8") == ["8.8.8.8"]
    assert resolved("127.0.0.1", allow=AddressRule(allow_private=True)) == ["127.0.0.1"]
    rule = AddressRule(also_public=("127.0.0.1/32",))
    assert (rule("127.0.0.1"), rule("127.0.0.2"), rule("8.8.8.8"), rule("::1")) == (True, False, True, False)


def test_of_mixed_answers_only_the_checked_are_given() -> None:
    assert resolved("mixed.example", lookup=lambda _: ["10.0.0.1", "8.8.8.8", "::1"]) == ["8.8.8.8"]
    with pytest.raises(PictureError, match="private_address"):
        resolved("inner.example", lookup=lambda _: ["10.0.0.1", "fe80::1%eth0"])
    with pytest.raises(PictureError, match="dns"):
        resolved("nothing.example", lookup=lambda _: [])


class Names:
    """A name service that counts its questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.code = socket.EAI_NONAME
        self.open = threading.Event()
        self.open.set()

    def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        self.open.wait(20)
        if self.fails:
            raise socket.gaierror(self.code, "as the system says it")
        return ["8.8.8.8"]


def test_answers_are_kept_shared_and_bounded() -> None:
    names = Names()

    async def ask() -> None:
        resolver = Resolver(lookup=names, max_entries=2)
        names.open.clear()
        together = asyncio.gather(*(resolver.resolve("A.example", 80) for _ in range(20)))
        await asyncio.sleep(0)
        names.open.set()
        await together
        assert names.asked == ["a.example"]
        for host in ("b.example", "a.example", "c.example", "a.example", "b.example"):
            await resolver.resolve(host, 80)
        # b was the longest unused when c came.
        assert names.asked == ["a.example", "b.example", "c.example", "b.example"]
        resolver.close()

    asyncio.run(ask())


def test_failures_are_kept_too_and_both_grow_old() -> None:
    names = Names()

    async def ask(ttl: float, negative_ttl: float) -> int:
        names.asked.clear()
        resolver = Resolver(lookup=names, ttl=ttl, negative_ttl=negative_ttl)
        for fails in (True, True, False, False):
            names.fails = fails
            with suppress(PictureError):
                await resolver.resolve("a.example", 80)
        resolver.close()
        return len(names.asked)

    assert asyncio.run(ask(100, 100)) == 1
    assert asyncio.run(ask(100, -1)) == 3
    assert asyncio.run(ask(-1, -1)) == 4


def test_a_slow_name_costs_its_asker_alone() -> None:
    names = Names()

    async def ask() -> None:
        resolver = Resolver(lookup=names, timeout=0.05)
        names.open.clear()
        with pytest.raises(PictureError, match="no answer within"):
            await resolver.resolve("slow.example", 80)
        names.open.set()
        while "slow.example" in resolver._asked:
            await asyncio.sleep(0.01)
        assert await resolver.resolve("slow.example", 80) == ["8.8.8.8"]  # the late answer was kept
        assert names.asked == ["slow.example"]
        resolver.close()

    asyncio.run(ask())


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_SYSTEM, socket.EAI_MEMORY])
def test_no_answer_is_never_kept(code: int) -> None:
    names = Names()
    names.code, names.fails = code, True

    async def ask() -> None:
        resolver = Resolver(lookup=names)
        for _ in range(3):
            with pytest.raises(NoAnswer):
                await resolver.resolve("a.example", 80)
            assert not resolver.knows("a.example")
        names.fails = False
        assert await resolver.resolve("a.example", 80) == ["8.8.8.8"]
        assert len(names.asked) == 4
        resolver.close()

    asyncio.run(ask())


def test_hundreds_of_slow_names_do_not_keep_others_waiting() -> None:
    slow = threading.Event()

    def names(host: str) -> Sequence[str]:
        if host.startswith("slow"):
            slow.wait(20)
        return ["8.8.8.8"]

    async def ask() -> None:
        resolver = Resolver(lookup=names)
        hanging = [asyncio.create_task(resolver.resolve(f"slow-{number}.example", 80)) for number in range(300)]
        await asyncio.sleep(0)
        assert await resolver.resolve("quick.example", 80) == ["8.8.8.8"]
        assert not any(task.done() for task in hanging)
        resolver.close()
        for task in hanging:
            task.cancel()

    asyncio.run(ask())
    slow.set()


SLOW_NAMES = """
import socket, time
real = socket.getaddrinfo
def slow(host, *rest, **how):
    if "slow" in str(host):
        time.sleep(60)
    return real("127.0.0.1", *rest, **how)
socket.getaddrinfo = slow
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions
fetcher = Fetcher(FetchLimits(FetchOptions(allow_private_hosts=True, concurrency=4)))
slow = [fetcher.submit(f"http://slow-{n}.example:PORT/ok") for n in range(100)]
quick = [fetcher.submit(f"http://quick-{n}.example:PORT/ok") for n in range(50)]
print(sum(len(ticket.result(60).data) > 0 for ticket in quick), any(ticket.done() for ticket in slow))
fetcher.close()
"""


def test_slow_names_take_no_place_in_flight_and_nobody_waits_for_them_at_the_end() -> None:
    with HostileHost() as host:
        command = [sys.executable, "-c", SLOW_NAMES.replace("PORT", str(host.port))]
        # Each of them takes a minute; the process is through before.
        ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("50 False", "")


def test_who_comes_when_a_name_is_just_known_waits_behind_those_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    real, is_known, go = Flights.look_up, threading.Event(), threading.Event()

    async def late(flights: Flights, host: str, port: int) -> PictureError | None:
        found = await real(flights, host, port)
        is_known.set()
        while not go.is_set():
            await asyncio.sleep(0.001)
        return found

    monkeypatch.setattr(Flights, "look_up", late)
    limits = but(FetchLimits(), timeout=600.0, per_host=2, retries=0, allow_private_hosts=True)
    with HostileHost() as host, Fetcher(limits) as fetcher:
        first = fetcher.submit(host.url("/ok"))
        assert is_known.wait(60)
        for number in range(4):  # they would have all of the host's connections for ten minutes
            fetcher.submit(host.url(f"/silent/{number}"))
        for _ in range(2):  # after the second round the queues were looked at
            looked = threading.Event()
            fetcher._thread.post(looked.set)
            assert looked.wait(60)
        go.set()
        assert first.result(60)


def test_a_name_server_that_stumbles_costs_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = socket.getaddrinfo, Counter[str]()

    def stumbling(host: str, *rest: Any, **how: Any) -> object:
        asked[host] += 1
        if asked[host] == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("127.0.0.1", *rest, **how)

    monkeypatch.setattr(socket, "getaddrinfo", stumbling)
    limits = but(FetchLimits(), timeout=5.0, retries=1, allow_private_hosts=True)
    with HostileHost() as host, Fetcher(limits) as fetcher:
        tickets = [fetcher.submit(host.url("/ok", f"{number % 5}.example")) for number in range(50)]
        assert all(ticket.result(60) for ticket in tickets)
    # Once more for each name, not for each picture.
    assert set(asked.values()) == {2}


@pytest.mark.parametrize("later", range(6))
def test_who_is_cancelled_while_the_answer_comes_is_cancelled(later: int) -> None:
    # An asker who goes on as if nothing had been said is never waited for, and dropped where it stands.

    async def ask() -> bool:
        answered = threading.Event()

        def found(host: str) -> list[str]:
            answered.set()
            return ["1.1.1.1"]

        resolver = Resolver(lookup=found)
        loop = asyncio.get_running_loop()
        asker = asyncio.create_task(resolver.resolve("a.example", 80))
        await asyncio.sleep(0)
        answered.wait()
        wait_until(lambda: loop._ready)  # type: ignore[attr-defined]  # where the answer lies now
        for _ in range(later):
            await asyncio.sleep(0)
        if not asker.cancel():
            return True
        await asyncio.wait([asker])
        return asker.cancelled()

    assert asyncio.run(ask())
