"""guard: only globally routable addresses, and what is checked is what is connected to (law 7)."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.web import guard

PRIVATE_V4 = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
]  # fmt: skip
PRIVATE_V6 = [
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::8.8.8.8", "64:ff9b::10.0.0.1",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2002:7f00:1::1",
    "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
    "2606:4700::1111%eth0",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "223.255.255.255",
    "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize(
    "address", PRIVATE_V4 + PRIVATE_V6 + ["", "localhost", "127.1", "0x7f.1", "2130706433", "[::1]"]
)
def test_closed_addresses(address: str) -> None:
    assert not guard.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_open_addresses(address: str) -> None:
    assert guard.is_public(address)


@given(st.ip_addresses(v=4))
def test_ipv4_open_to_us_is_global_to_python(address: ipaddress.IPv4Address) -> None:
    if guard.is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
    for embedded in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert guard.is_public(embedded) == guard.is_public(str(address))


@given(st.ip_addresses(v=6))
def test_ipv6_open_to_us_is_global_unicast(address: ipaddress.IPv6Address) -> None:
    embeds = address.ipv4_mapped is not None or address in ipaddress.ip_network("64:ff9b::/96")
    if guard.is_public(str(address)) and not embeds:
        assert address in ipaddress.ip_network("2000::/3")
        assert address.is_global


@pytest.mark.parametrize(
    "url",
    ["http://a.example/x.jpg", "https://a.example:8443/", "HTTP://A.EXAMPLE", "http://[2606:4700::1111]:8080/x",
     "http://127.0.0.1/", "http://münchen.example/ü.jpg", "http://a.example:81/?q#f"],
)  # fmt: skip
def test_urls_with_a_plain_host(url: str) -> None:
    guard.check_url(url)


@pytest.mark.parametrize(
    "url",
    ["", "a.example", "//a.example/", "ftp://a.example/", "file:///etc/passwd", "data:image/png,x", "http://", "http:///x",
     "http://:80/", "http://a.example:0/", "http://a.example:65536/", "http://a.example:x/", "http://a.example:25/",
     "http://user@a.example/", "http://user:word@a.example/", "http://a.example\\@b.example/", "http://a.example/ x",
     "http://a.example/\r\nX: y", "http://a.exa\nmple/", "http://a.example/\t", "http://a.example/\x00", "http://[::1/",
     " http://a.example/", "javascript:alert(1)"],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(PictureError) as caught:
        guard.check_url(url)
    assert caught.value.reason == "bad_url"


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"http://{text}", f"http://{text}/x"):
        try:
            scheme, host, port = guard.split_url(url)
        except PictureError:
            continue
        assert scheme in ("http", "https")
        assert host
        assert 0 < port < 65536


def resolved(host: str, **options: object) -> list[str]:
    async def ask() -> list[str]:
        resolver = guard.Resolver(**options)
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
    assert resolved("127.0.0.1", allow=guard.AddressRule(allow_private=True)) == ["127.0.0.1"]
    rule = guard.AddressRule(also_public=("127.0.0.1/32",))
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
        self.open = threading.Event()
        self.open.set()

    def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        self.open.wait(20)
        if self.fails:
            raise OSError("unknown")
        return ["8.8.8.8"]


def test_answers_are_kept_shared_and_bounded() -> None:
    names = Names()

    async def ask() -> None:
        resolver = guard.Resolver(lookup=names, max_entries=2)
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
        resolver = guard.Resolver(lookup=names, ttl=ttl, negative_ttl=negative_ttl)
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
        resolver = guard.Resolver(lookup=names, timeout=0.05)
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


@pytest.mark.parametrize("later", range(6))
def test_who_is_cancelled_while_the_answer_comes_is_cancelled(later: int) -> None:
    """An asker who goes on as if nothing had been said is never waited for, and dropped where it stands."""

    async def ask() -> bool:
        answered = threading.Event()

        def names(host: str) -> list[str]:
            answered.set()
            return ["1.1.1.1"]

        resolver = guard.Resolver(lookup=names)
        asker = asyncio.create_task(resolver.resolve("a.example", 80))
        await asyncio.sleep(0)
        answered.wait()
        resolver._threads.shutdown(wait=True)  # the answer lies in the loop's queue now
        for _ in range(later):
            await asyncio.sleep(0)
        if not asker.cancel():
            return True
        await asyncio.wait([asker])
        return asker.cancelled()

    assert asyncio.run(ask())


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "ftp_proxy"])
def test_a_proxy_of_the_users_is_refused_unless_trusted(variable: str) -> None:
    environ = {variable: "http://user:word@proxy.example:3128", "no_proxy": "x"}
    with pytest.raises(OptionError, match=f"{variable} is set.*trust_proxy") as caught:
        guard.refuse_user_proxy(environ, trust_proxy=False)
    assert "word" not in str(caught.value)
    assert guard.refuse_user_proxy(environ, trust_proxy=True) == environ[variable]


def test_no_proxy_and_proxies_that_cannot_be_used() -> None:
    assert guard.refuse_user_proxy({"http_proxy": "", "PATH": "x"}, trust_proxy=False) is None
    assert guard.refuse_user_proxy({"http_proxy": "p.example:1"}, trust_proxy=True) == "http://p.example:1"
    with pytest.raises(OptionError, match="socks5://"):
        guard.refuse_user_proxy({"all_proxy": "socks5://p.example:1"}, trust_proxy=True)
