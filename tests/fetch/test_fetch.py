"""Fetching: whatever way a host misbehaves, it ends in a picture or a reason, in time, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.http import asked_wait
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.opt_outs import refusal
from laion_face_builder.options import OptionFields, Options
from tests.support.hostile_host import CERTIFICATE, HostileHost
from tests.support.nested import but
from tests.support.waiting import wait_until

LOOPBACK = ("127.0.0.0/8",)
LIMITS = but(FetchLimits(), timeout=30.0, retries=0, max_bytes=2_000_000, max_pixels=1_000_000, also_public=LOOPBACK)


@pytest.fixture(scope="module")
def host() -> Iterator[HostileHost]:
    with HostileHost() as found:
        yield found


@pytest.fixture(scope="module")
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(LIMITS) as found:
        yield found


def reason(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(PictureError) as caught:
        fetcher.submit(url).result(60)
    return caught.value.reason


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("laion-face")}


def test_a_picture_comes_as_it_is(host: HostileHost, fetcher: Fetcher) -> None:
    found = fetcher.submit(host.url("/ok")).result(60)
    assert found.data == host.picture
    assert (found.format, found.width, found.height, found.orientation) == ("JPEG", 48, 32, 1)
    assert len(found.sha256) == 64
    assert "compatible; laion-face; +https://" in host.agents[-1]


@pytest.mark.parametrize("path", ["/more", "/chunked", "/chain/10"])
def test_odd_answers_that_still_bring_the_picture(host: HostileHost, fetcher: Fetcher, path: str) -> None:
    assert fetcher.submit(host.url(path)).result(60).data == host.picture


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nothing-here", "http_404"),
        ("/status?code=503", "http_503"),
        ("/status?code=206", "http_206"),
        ("/status?code=200", "empty"),
        ("/html", "not_an_image"),
        ("/cut", "truncated"),
        ("/bomb", "too_many_pixels"),
        ("/endless", "too_large"),
        ("/declared", "too_large"),
        ("/headers", "too_large"),
        ("/short", "incomplete"),
        ("/reset", "reset"),
        ("/garbage", "bad_response"),
        ("/bad-chunks", "bad_response"),
        ("/loop", "redirects"),
        ("/chain/11", "redirects"),
        ("/nowhere", "bad_redirect"),
        ("/to?url=file:///etc/passwd", "bad_redirect"),
        ("/to?url=ftp://127.0.0.1/x.jpg", "bad_redirect"),
        ("/to?url=http://127.0.0.1:25/", "bad_redirect"),
        ("/to?url=http://10.0.0.1/", "private_address"),
        ("/to?url=http://169.254.169.254/latest/", "private_address"),
        ("/to?url=http://0x0a000001/", "private_address"),
    ],
)
def test_every_failure_has_its_reason(host: HostileHost, fetcher: Fetcher, path: str, expected: str) -> None:
    assert reason(fetcher, host.url(path)) == expected


@pytest.mark.timeout(60)  # far above the bound, far below what the host would take
@pytest.mark.parametrize("path", ["/silent", "/drip"])
def test_the_total_time_is_bounded(host: HostileHost, path: str) -> None:
    with Fetcher(but(LIMITS, timeout=0.6, retries=1)) as fetcher:
        assert reason(fetcher, host.url(path)) == "timeout"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a.jpg",
        "http://",
        "http://user@example.com/",
        "http://example.com:22/",
        "http://exa mple.com/",
        "http://example.com/a\r\nX: y",
        "",
        "a.jpg",
    ],
)
def test_bad_addresses_never_get_as_far_as_a_socket(fetcher: Fetcher, url: str) -> None:
    assert reason(fetcher, url) == "bad_url"


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_private_addresses_are_refused_under_every_name(host: HostileHost, name: str) -> None:
    before = host.asked.total()
    with Fetcher(but(LIMITS, also_public=())) as fetcher:
        assert reason(fetcher, host.url("/ok", name)) in ("private_address", "dns")
    assert host.asked.total() == before


def test_the_address_is_checked_again_at_the_socket(host: HostileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    # Even if a check before were wrong, libcurl gets no socket to an address that is refused.
    from laion_face_builder.fetch import names

    async def wrong(self: names.Resolver, name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(names.Resolver, "resolve", wrong)
    before = host.asked.total()
    with Fetcher(but(LIMITS, also_public=())) as fetcher:
        assert reason(fetcher, host.url("/ok", "pictures.invalid")) == "private_address"
    assert host.asked.total() == before


def test_the_checked_address_is_the_one_connected_to(host: HostileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    # A name that nobody else can resolve: the connection goes where our resolver said.
    from laion_face_builder.fetch import names

    async def ours(self: names.Resolver, name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(names.Resolver, "resolve", ours)
    with Fetcher(LIMITS) as fetcher:
        assert fetcher.submit(host.url("/ok", "pictures.invalid")).result(60).data == host.picture


def test_unknown_hosts(fetcher: Fetcher) -> None:
    assert reason(fetcher, "http://pictures.invalid/a.jpg") == "dns"
    assert reason(fetcher, "http://127.0.0.1:1025/") in ("refused", "reset")


def test_tls_is_verified(tmp_path: Path) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_text(CERTIFICATE[CERTIFICATE.index("-----BEGIN CERT") :])
    with HostileHost(tls=True) as host:
        with Fetcher(LIMITS) as fetcher:
            assert reason(fetcher, host.url("/ok")) == "tls"
        assert not host.asked
        with Fetcher(but(LIMITS, ca_file=str(trusted))) as fetcher:
            assert fetcher.submit(host.url("/ok")).result(60).data == host.picture
            # 127.0.0.2 is not in the certificate, and nobody listens there.
            assert reason(fetcher, f"https://127.0.0.2:{host.port}/ok") in ("tls", "refused")


@pytest.mark.parametrize(
    ("values", "out"),
    [
        ("noai", True),
        ("noimageai", True),
        ("NoIndex", True),
        ("all, noimageindex", True),
        ("nofollow|noai", True),
        ("otherbot: noindex", False),
        ("otherbot: noindex, noai", False),
        ("laion-face: noai", True),
        ("otherbot: all, laion-face: noai", True),
        ("otherbot: noindex|LAION-FACE : NOAI", True),
        ("none", True),
        ("otherbot: none", False),
        ("*: noai", True),
        ("noai noimageai", True),
        ("nofollow; noai", True),
        ("max-image-preview: large, noai", True),
        ("unavailable_after: 25 Jun 2100 15:00:00 PST, noindex", True),
        ("unavailable_after: Fri, 25 Jun 2100 15:00:00 PST, noindex", True),
        ("unavailable_after: Fri, 25 Jun 2010 15:00:00 PST", True),
        ("Unavailable_After : Friday, 25-Jun-10 15:00:00 PST, all", True),
        ("unavailable_after: 2010-06-25T15:00:00Z", True),
        ("unavailable_after: 2010-06-25", True),
        ("unavailable_after: Fri, 25 Jun 2100 15:00:00 PST, all", False),
        ("unavailable_after: never, all", False),
        ("unavailable_after: never, noai", True),
        ("otherbot: unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, noindex", False),
        ("laion-face: unavailable_after: Fri, 25 Jun 2010 15:00:00 PST", True),
        ("otherbot: noindex, laion-face: nofollow", False),
        ("max-snippet:20, nofollow", False),
        ("nofollow, nosnippet", False),
        ("noaix", False),
        ("", False),
    ],
)
def test_opt_outs_are_honoured(host: HostileHost, fetcher: Fetcher, values: str, out: bool) -> None:
    ticket = fetcher.submit(host.url(f"/tag?v={quote(values) or '%20'}"))
    if out:
        with pytest.raises(PictureError, match="opt_out"):
            ticket.result(60)
    else:
        assert ticket.result(60).data == host.picture


def test_an_opt_out_of_a_redirect_is_not_the_pictures(host: HostileHost, fetcher: Fetcher) -> None:
    assert fetcher.submit(host.url(f"/to?url={quote(host.url('/ok'))}")).result(60).data == host.picture
    assert reason(fetcher, host.url(f"/to?url={quote(host.url('/tag?v=noai'))}")) == "opt_out"


def test_opt_outs_by_the_users_own_token(host: HostileHost) -> None:
    assert refusal(["mybot: noai"], "MyBot")
    assert not refusal(["laion-face: noai"], "MyBot")
    assert refusal(["noai"], "MyBot", [" NoAI "])
    assert refusal(["none"], "MyBot", ["noai"])
    assert not refusal(["noindex"], "MyBot", ["noai"])
    assert not refusal(["none", "noai", "unavailable_after: 2010-06-25"], "MyBot", [])
    with Fetcher(but(LIMITS, user_agent_token="MyBot")) as fetcher:
        assert reason(fetcher, host.url("/tag?v=mybot:%20noai")) == "opt_out"
        assert fetcher.submit(host.url("/tag?v=laion-face:%20noai")).result(60)
    assert "compatible; MyBot;" in host.agents[-1]


@pytest.mark.parametrize("path", ["/fails-once/a?code=500", "/fails-once/b?code=429&after=1", "/reset-once"])
def test_what_can_pass_is_tried_again(host: HostileHost, path: str) -> None:
    with Fetcher(but(LIMITS, timeout=6, retries=2)) as fetcher:
        assert fetcher.submit(host.url(path)).result(60).data == host.picture
    assert host.asked[path.partition("?")[0]] == 2


@pytest.mark.parametrize("path", ["/gone/1", "/html", "/tag?v=noai", "/fails-once/c?code=403", "/loop", "/bomb"])
def test_what_cannot_pass_is_not_tried_again(path: str) -> None:
    with HostileHost() as host, Fetcher(but(LIMITS, retries=3, redirects=0)) as fetcher:
        reason(fetcher, host.url(path))
        assert host.asked.total() == 1


def test_a_long_retry_after_is_not_waited_for(host: HostileHost) -> None:
    with Fetcher(but(LIMITS, retries=2)) as fetcher:
        assert reason(fetcher, host.url("/fails-once/d?code=429&after=3600")) == "http_429"
    assert host.asked["/fails-once/d"] == 1


def test_retry_after_in_all_its_forms() -> None:
    assert asked_wait(["7"]) == 7
    assert asked_wait(["Fri, 31 Dec 1999 23:59:59 GMT"]) == 0
    assert asked_wait(["Fri, 31 Dec 2100 23:59:59 GMT"]) > 1e9
    assert asked_wait(["soon", "-3", ""]) == 0


def test_no_more_connections_to_a_host_than_allowed() -> None:
    with (
        HostileHost() as host,
        HostileHost(address="127.0.0.2") as other,
        Fetcher(but(LIMITS, per_host=3)) as fetcher,
    ):
        host.gate.clear()
        slow = [fetcher.submit(host.url("/slow")) for _ in range(40)]
        quick = fetcher.submit(other.url("/ok", "127.0.0.2"))
        assert quick.result(60)
        # The busy host's queue did not hold up the other one.
        assert not any(ticket.done() for ticket in slow)
        host.gate.set()
        assert all(ticket.result(60) for ticket in slow)
        assert host.most_at_once <= 3
        assert host.asked.total() == 40


def test_a_host_that_is_down_is_given_up_as_a_whole() -> None:
    with HostileHost() as host, Fetcher(but(LIMITS, timeout=0.3, per_host=8)) as fetcher:
        tickets = [fetcher.submit(host.url(f"/silent/{number}")) for number in range(400)]
        assert {reason_of(ticket) for ticket in tickets} == {"timeout"}
        # 400 pictures, eight at a time and 0.3 s each, would be 15 s.
        assert host.asked.total() < 100


def reason_of(ticket: object) -> str:
    with pytest.raises(PictureError) as caught:
        ticket.result(60)  # type: ignore[attr-defined]
    return caught.value.reason


def test_cancelling_a_ticket(host: HostileHost, fetcher: Fetcher) -> None:
    ticket = fetcher.submit(host.url("/silent"))
    with pytest.raises(TimeoutError):
        ticket.result(0.05)
    ticket.cancel()
    with pytest.raises(CancelledError):
        ticket.result(60)
    assert fetcher.submit(host.url("/ok")).result(60)


def test_what_is_ended_before_its_first_step_keeps_no_place() -> None:
    # A stream may be dropped just when its fetches were begun, again and again.
    with HostileHost() as host, Fetcher(but(LIMITS, concurrency=2, per_host=2)) as fetcher:
        for _ in range(4):
            queue = fetcher.stream(10**9)._queue
            thread, jobs = fetcher._thread, [queue.make_job(host.url(f"/ok/{number}")) for number in range(2)]

            def begin(thread: Any = thread, queue: Any = queue, jobs: Any = jobs) -> None:
                # Whoever looks at the queues next begins them, behind what is to be done before.
                thread._loop.call_soon(thread._end, queue, None)
                thread._accept(jobs)

            thread.post(begin)
            for job in jobs:
                with pytest.raises(CancelledError):
                    job.ticket.result(60)
        assert fetcher.submit(host.url("/ok")).result(60)
        assert not len(fetcher._thread._scheduler._places)


def test_closing_ends_hundreds_at_once_and_leaves_nothing() -> None:
    gc.collect()
    with HostileHost(address="0.0.0.0") as host:
        fetcher = Fetcher(but(LIMITS, timeout=3600))  # nothing ends by itself
        before = our_threads()
        fds = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        tickets = [fetcher.submit(host.url("/silent", f"127.0.1.{number % 50}")) for number in range(400)]
        wait_until(lambda: host.open >= 250)
        fetcher.close()
        for ticket in tickets:
            with pytest.raises(CancelledError):
                ticket.result(60)
        wait_until(lambda: host.open == 0)
        wait_until(lambda: our_threads() <= before)
        wait_until(lambda: sys.platform != "linux" or len(os.listdir("/proc/self/fd")) <= fds)
        # Closed is not over: it starts anew.
        assert fetcher.submit(host.url("/ok")).result(60)
        fetcher.close()


def test_a_dropped_fetcher_closes_itself(host: HostileHost) -> None:
    before = our_threads()
    fetcher = Fetcher(LIMITS)
    assert fetcher.submit(host.url("/ok")).result(60)
    assert our_threads() - before
    del fetcher
    gc.collect()
    wait_until(lambda: our_threads() <= before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_anew(host: HostileHost) -> None:
    with Fetcher(LIMITS) as fetcher:
        assert fetcher.submit(host.url("/ok")).result(60)
        hanging = fetcher.submit(host.url("/slow"))
        answers = get_context("fork").SimpleQueue()
        child = get_context("fork").Process(target=_in_child, args=(fetcher, host.url("/ok"), hanging, answers))
        child.start()
        assert answers.get() == (len(host.picture), "RuntimeError")
        child.join(60)
        assert child.exitcode == 0
        # The parent's connections are whole.
        assert hanging.result(60)
        assert fetcher.submit(host.url("/ok")).result(60)


def _in_child(fetcher: Fetcher, url: str, hanging: object, answers: object) -> None:
    size = len(fetcher.submit(url).result(60).data)
    try:
        hanging.result(1)  # type: ignore[attr-defined]
        what = "done"
    except (RuntimeError, TimeoutError) as error:
        what = type(error).__name__
    fetcher.close()
    answers.put((size, what))  # type: ignore[attr-defined]


def test_a_fetcher_travels_to_a_spawned_worker(host: HostileHost, fetcher: Fetcher) -> None:
    fetcher.submit(host.url("/ok")).result(60)
    with pickle.loads(pickle.dumps(fetcher)) as copy:
        assert copy.limits == fetcher.limits
        assert copy.submit(host.url("/ok")).result(60)


def test_nothing_is_said_at_the_end_of_a_process() -> None:
    # There is no close, and hundreds are under way: the interpreter still ends at once, without a warning.
    with HostileHost(address="0.0.0.0") as host:
        command = [sys.executable, "-W", "always::ResourceWarning", "-c", _hundreds_under_way(host)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, str(len(host.picture)), "")


def _hundreds_under_way(host: HostileHost) -> str:
    return f"""
import time
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.options import FetchOptions
from laion_face_builder.fetch.opt_outs import refusal
from laion_face_builder.fetch.fetcher import Fetcher
fetcher = Fetcher(FetchLimits(FetchOptions(allow_private_hosts=True)))
tickets = [fetcher.submit(f"http://127.0.1.{{number % 30}}:{host.port}/silent") for number in range(200)]
print(len(fetcher.submit({host.url("/ok")!r}).result(60).data))
"""


def test_limits_come_from_the_users_options() -> None:
    options = Options.of("20M", OptionFields(user_agent_token="me", timeout=7.0)).fetch
    limits = FetchLimits.of(options, environ={})
    assert (limits.options, limits.options.timeout, limits.proxy) == (options, 7.0, None)
    assert limits.user_agent.startswith("Mozilla/5.0 (compatible; me; +")
    with pytest.raises(OptionError, match="trust_proxy"):
        FetchLimits.of(options, environ={"http_proxy": "http://proxy:3128"})
    trusting = Options.of("20M", OptionFields(trust_proxy=True)).fetch
    assert FetchLimits.of(trusting, environ={"http_proxy": "http://proxy:3128"}).proxy == "http://proxy:3128"
    with pytest.raises(OptionError):
        but(FetchLimits(), concurrency=0)


def test_a_proxy_in_the_environment_is_never_used_silently(host: HostileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Fetcher(LIMITS) as fetcher:
        assert fetcher.submit(host.url("/ok")).result(60)


def test_a_trusted_proxy_is_gone_through(host: HostileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hostile host plays the proxy: it is asked for the whole address, whatever the environment excepts.
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    with Fetcher(but(LIMITS, proxy=f"http://127.0.0.1:{host.port}")) as fetcher:
        assert fetcher.submit("http://pictures.invalid/ok").result(60).data == host.picture
