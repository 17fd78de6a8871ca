"""Sites are asked for their rules once, before their pictures; and who forbids something is not asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.site_rules import OPEN, SiteRules, closed, read_robots
from laion_face_builder.fetch.sites import SiteMemory, memory_of
from tests.support.hostile_host import bind_anew, message
from tests.support.nested import but
from tests.support.site_host import SOFT_404, SiteHost, status, to
from tests.support.waiting import wait_until

LIMITS = but(FetchLimits(), timeout=30.0, retries=1, also_public=("127.0.0.0/8",), respect="robots")
ROBOTS, TDM = "/robots.txt", "/.well-known/tdmrep.json"
NOBODY = "User-agent: *\nDisallow: /"
RESERVED = '[{"location": "/", "tdm-reservation": 1}]'

MakeHost = Callable[..., SiteHost]


@pytest.fixture
def make_host() -> Iterator[MakeHost]:
    """Start hosts; each has a port of its own, and so is a site that nobody knows."""
    with ExitStack() as stack:

        def make(robots: Any = None, **pages: Any) -> SiteHost:
            host = stack.enter_context(SiteHost())
            host.pages = {path: page for path, page in {ROBOTS: robots, **pages}.items() if page is not None}
            return host

        yield make


@pytest.fixture(scope="module")
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(LIMITS) as found:
        yield found


def fates(fetcher: Fetcher, *urls: str) -> list[str]:
    """Return what became of each picture: "ok", or why there is none."""
    found = []
    for ticket in [fetcher.submit(url) for url in urls]:
        try:
            ticket.result(60)
            found.append("ok")
        except PictureError as error:
            found.append(error.reason)
    return found


@pytest.fixture
def nobody() -> Iterator[int]:
    """Take a port at which nobody listens."""
    with bind_anew() as taken:
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("robots", "expected", "asked"),
    [
        (None, "ok", 1),
        (NOBODY, "robots_disallowed", 1),
        ("User-agent: *\nDisallow: /b", "ok", 1),
        ("User-agent: laion-face\nDisallow: /a.jpg", "robots_disallowed", 1),
        ("User-agent: *\nContent-Usage: train-ai=n", "content_usage", 1),
        (SOFT_404, "ok", 1),
        (status(204), "ok", 1),
        (status(401), "ok", 1),
        (status(403), "ok", 1),
        (status(410), "ok", 1),
        (status(500), "robots_unavailable", 2),
        (status(503), "robots_unavailable", 2),
        ([status(503), NOBODY.encode()], "robots_unavailable", 2),
        ([status(503), message(NOBODY.encode())], "robots_disallowed", 2),
        ([status(429, "Retry-After: 1"), message(NOBODY.encode())], "robots_disallowed", 2),
        (message(b"x", "Content-Encoding: br"), "robots_unavailable", 1),
        (to("/robots.txt"), "ok", 11),
        (to("http://10.0.0.1/robots.txt"), "robots_unavailable", 1),
        (to("ftp://127.0.0.1/robots.txt"), "ok", 1),
        (f"{NOBODY}\n".ljust(3_000_000, "#"), "robots_disallowed", 1),
    ],
)
def test_what_a_host_answers_for_robots_txt(
    make_host: MakeHost, fetcher: Fetcher, robots: Any, expected: str, asked: int
) -> None:
    host = make_host(robots)
    assert fates(fetcher, host.url("/a.jpg")) == [expected]
    # A garbled answer is tried again as a picture's is, and nobody asks for a picture that was refused.
    assert host.asked[ROBOTS] == asked or expected == "robots_unavailable"
    assert host.asked["/a.jpg"] == (expected == "ok")


def test_one_errand_serves_all_pictures_of_a_site_and_holds_up_no_other(make_host: MakeHost) -> None:
    slow, quick = make_host("User-agent: *\nDisallow: /*3.jpg"), make_host()
    slow.gate.clear()
    with Fetcher(but(LIMITS, timeout=60.0)) as fetcher:
        tickets = [fetcher.submit(slow.url(f"/{number}.jpg")) for number in range(600)]
        assert fates(fetcher, *(quick.url(f"/{number}.jpg") for number in range(20))) == ["ok"] * 20
        # All 600 wait for the slow host's rules, and hold nothing that the other host needs.
        assert not any(ticket.done() for ticket in tickets)
        slow.gate.set()
        for number, ticket in enumerate(tickets):
            if number % 10 == 3:
                with pytest.raises(PictureError, match="robots_disallowed"):
                    ticket.result(60)
            else:
                assert ticket.result(60).data == slow.picture
    assert (slow.asked[ROBOTS], quick.asked[ROBOTS], slow.asked["/3.jpg"]) == (1, 1, 0)


def test_a_host_that_is_not_there_is_asked_once_and_its_pictures_fail_with_its_reason(
    make_host: MakeHost, nobody: int
) -> None:
    silent = make_host("")
    silent.gate.clear()
    with Fetcher(but(LIMITS, timeout=0.6, retries=0)) as fetcher:
        assert set(fates(fetcher, *(silent.url(f"/{number}.jpg") for number in range(50)))) == {"timeout"}
        found = fates(fetcher, *(f"http://127.0.0.1:{nobody}/{number}.jpg" for number in range(50)))
    assert set(found) == {"refused"}
    assert dict(silent.asked) == {ROBOTS: 1}


def test_a_redirect_to_another_site_asks_that_site_too(make_host: MakeHost, fetcher: Fetcher) -> None:
    there = make_host("User-agent: *\nDisallow: /a")
    here = make_host(**{"/1": to(there.url("/a.jpg")), "/2": to(there.url("/b.jpg"))})
    assert fates(fetcher, here.url("/1"), here.url("/2")) == ["robots_disallowed", "ok"]
    assert (here.asked[ROBOTS], there.asked[ROBOTS], there.asked["/a.jpg"]) == (1, 1, 0)


def test_rules_behind_a_redirect_are_those_of_the_site_that_was_asked_and_of_their_own(
    make_host: MakeHost, fetcher: Fetcher
) -> None:
    there = make_host("User-agent: *\nDisallow: /a")
    here = make_host(to("/1"), **{f"/{n}": to(f"/{n + 1}") for n in range(1, 5)}, **{"/5": to(there.url(ROBOTS))})
    assert fates(fetcher, here.url("/a.jpg"), here.url("/b.jpg")) == ["robots_disallowed", "ok"]
    assert fates(fetcher, there.url("/a.jpg"), there.url("/b.jpg")) == ["robots_disallowed", "ok"]
    assert there.asked[ROBOTS] == 1


@pytest.mark.parametrize(
    ("respect", "fates_of_kinds", "pages"),
    [
        ("none", ["ok", "ok", "ok", "ok"], 0),
        ("headers", ["opt_out", "tdm_reserved", "ok", "ok"], 0),
        ("robots", ["opt_out", "tdm_reserved", "robots_disallowed", "ok"], 4),
        ("all", ["opt_out", "tdm_reserved", "robots_disallowed", "tdm_reserved"], 8),
    ],
)
def test_each_value_of_respect_has_what_stands_before_it(
    make_host: MakeHost, respect: str, fates_of_kinds: list[str], pages: int
) -> None:
    hosts = [make_host(), make_host(), make_host(NOBODY), make_host(**{TDM: RESERVED})]
    hosts[0].headers, hosts[1].headers = ("X-Robots-Tag: noai",), ("tdm-reservation: 1",)
    with Fetcher(but(LIMITS, respect=respect)) as fetcher:
        assert fates(fetcher, *(host.url("/a.jpg") for host in hosts)) == fates_of_kinds
    assert sum(host.asked[ROBOTS] + host.asked[TDM] for host in hosts) == pages


def test_a_tdmrep_json_that_cannot_be_had_reserves_nothing(make_host: MakeHost) -> None:
    # The last of them promises more bytes than come.
    with Fetcher(but(LIMITS, respect="all", retries=0, timeout=3.0)) as fetcher:
        for page in (status(500), SOFT_404, to(TDM), message(b"x", length=9)):
            assert fates(fetcher, make_host(**{TDM: page}).url("/a.jpg")) == ["ok"]


def test_rules_are_for_the_name_that_asks_and_the_contact_is_said(make_host: MakeHost) -> None:
    host = make_host("User-agent: mybot\nDisallow: /\n\nUser-agent: *\nDisallow:")
    with Fetcher(but(LIMITS, contact="me@example.org")) as fetcher:
        assert fates(fetcher, host.url("/a.jpg")) == ["ok"]
    assert host.agents[-1].startswith("laion-face/")
    assert host.agents[-1].endswith("; me@example.org)")
    with Fetcher(but(LIMITS, user_agent_token="MyBot/2.0", contact="https://example.org/bot")) as fetcher:
        assert fates(fetcher, host.url("/a.jpg")) == ["robots_disallowed"]
    assert host.agents[-1].startswith("MyBot/2.0 (+https://")
    assert host.agents[-1].endswith("; https://example.org/bot)")


def test_what_nobody_waits_for_any_more_is_not_asked_for(make_host: MakeHost) -> None:
    hosts = [make_host() for _ in range(12)]
    for host in hosts:
        host.pages[ROBOTS] = ""
        host.gate.clear()
    with Fetcher(but(LIMITS, concurrency=2)) as fetcher:
        stream = fetcher.stream(10**9)
        stream.submit([host.url("/a.jpg") for host in hosts])
        wait_until(lambda: hosts[0].asked[ROBOTS] == 1)
        stream.close()
        for host in hosts:
            host.gate.set()
        assert fates(fetcher, hosts[0].url("/b.jpg")) == ["ok"]
        # One errand at a time, and those in the queue have no pictures.
        assert sum(host.asked[ROBOTS] for host in hosts) < 4


def test_rules_are_known_for_a_day_and_failures_for_a_minute() -> None:
    memory = SiteMemory()
    memory.put("a", OPEN, 0.0)
    memory.put("b", closed("timeout", "x"), 0.0)
    assert (memory.get("a", 86_399.0), memory.get("a", 86_400.0)) == (OPEN, None)
    assert (memory.get("b", 59.0) is not None, memory.get("b", 60.0)) == (True, None)
    assert memory.size == 0


def test_what_is_remembered_is_bounded_in_bytes() -> None:
    memory = SiteMemory(100_000)
    rules = read_robots(b"User-agent: *\n" + b"Disallow: /some/where\n" * 20, "us")
    assert rules.size > 20 * len("Disallow: /some/where") + OPEN.size
    for number in range(1_000):
        memory.put(f"http://host-{number}", rules, 0.0)
        memory.put(f"http://host-{number}", rules, 0.0)
        assert memory.get("http://host-0", 0.0) is rules
    assert 50_000 < memory.size <= 100_000
    huge = SiteRules(size=10**9)
    memory.put("huge", huge, 0.0)
    assert (memory.get("huge", 0.0), memory.get("http://host-999", 0.0)) == (huge, None)


def test_the_next_fetcher_of_a_process_knows_what_the_last_one_learned(make_host: MakeHost) -> None:
    host = make_host()
    for _ in range(2):
        with Fetcher(LIMITS) as fetcher:
            assert fates(fetcher, host.url("/a.jpg")) == ["ok"]
    assert host.asked[ROBOTS] == 1
    assert memory_of(LIMITS) is not memory_of(but(LIMITS, user_agent_token="other"))
    assert memory_of(LIMITS) is not memory_of(but(LIMITS, respect="all"))


def test_few_places_serve_many_sites_and_each_gets_few_connections(make_host: MakeHost, nobody: int) -> None:
    hosts = [make_host() for _ in range(8)]
    for host in hosts:
        host.pages[ROBOTS] = ""
    with Fetcher(but(LIMITS, concurrency=1)) as fetcher:
        # Pictures wait for two sites at a time; the others' stay in their queue, behind a host that is not there.
        urls = [f"http://127.0.0.1:{nobody}/{number}.jpg" for number in range(3)]
        urls += [host.url(f"/{number}.jpg") for number in range(3) for host in hosts]
        assert fates(fetcher, *urls) == ["refused"] * 3 + ["ok"] * 24
    assert {host.asked[ROBOTS] for host in hosts} == {1}
    assert max(host.most_at_once for host in hosts) <= 2
