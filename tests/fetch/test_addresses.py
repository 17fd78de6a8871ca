"""The guard of addresses: only globally routable ones, and what is checked is what is connected to (law 7)."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.fetch import addresses
from laion_face_builder.fetch.addresses import WebAddress

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
    assert not addresses.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_open_addresses(address: str) -> None:
    assert addresses.is_public(address)


@given(st.ip_addresses(v=4))
def test_ipv4_open_to_us_is_global_to_python(address: ipaddress.IPv4Address) -> None:
    if addresses.is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
    for embedded in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert addresses.is_public(embedded) == addresses.is_public(str(address))


@given(st.ip_addresses(v=6))
def test_ipv6_open_to_us_is_global_unicast(address: ipaddress.IPv6Address) -> None:
    embeds = address.ipv4_mapped is not None or address in ipaddress.ip_network("64:ff9b::/96")
    if addresses.is_public(str(address)) and not embeds:
        assert address in ipaddress.ip_network("2000::/3")
        assert address.is_global


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [("http://a.example/x.jpg", "a.example", 80), ("https://a.example:8443/", "a.example", 8443),
     ("HTTP://A.EXAMPLE", "a.example", 80), ("http://[2606:4700::1111]:8080/x", "2606:4700::1111", 8080),
     ("http://127.0.0.1/", "127.0.0.1", 80), ("http://münchen.example/ü.jpg", "xn--mnchen-3ya.example", 80),
     ("http://a.example:81/?q#f", "a.example", 81), (" http://a.example/ x\t\n", "a.example", 80),
     ("http://faß.example/", "xn--fa-hia.example", 80), ("https://I♥.example/", "xn--i-n3p.example", 443),
     ("http://ａ%2eexample。org/", "a.example.org", 80)],
)  # fmt: skip
def test_urls_with_a_plain_host(url: str, host: str, port: int) -> None:
    found = WebAddress.parse(url)
    assert (found.host, found.port) == (host, port)
    assert WebAddress.parse(found.url) == found


@pytest.mark.parametrize(
    "url",
    ["", "a.example", "//a.example/", "ftp://a.example/", "file:///etc/passwd", "data:image/png,x", "http://", "http:///x",
     "http://:80/", "http://a.example:0/", "http://a.example:65536/", "http://a.example:x/", "http://a.example:25/",
     "http://user@a.example/", "http://user:word@a.example/", "http://a.example\\@b.example/", "http://a b.example/",
     "http://a.example/\r\nX: y", "http://a.exa\nmple/", "http://a.example/\x00x", "http://[::1/", "http://[a.example]/",
     "http://a%00.example/", "http://a%2f.example/", "http://a%40b.example/", "http://[fe80::1%25eth0]/",
     "http://a..example/", f"http://{'a' * 64}.example/", f"http://{'ü' * 64}.example/", "http://\ud800.example/",
     "http://a.example/\ud800", "javascript:alert(1)"],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(PictureError) as caught:
        WebAddress.parse(url)
    assert caught.value.reason == "bad_url"


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"http://{text}", f"http://{text}/x"):
        try:
            found = WebAddress.parse(url)
        except PictureError:
            continue
        assert found.scheme in ("http", "https")
        assert found.host
        assert 0 < found.port < 65536
        # What goes over the wire is plain, and is read as the same again.
        assert re.fullmatch(r"[!-~]+", found.url)
        assert WebAddress.parse(found.url) == found


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "ftp_proxy"])
def test_a_proxy_of_the_users_is_refused_unless_trusted(variable: str) -> None:
    environ = {variable: "http://user:word@proxy.example:3128", "no_proxy": "x"}
    with pytest.raises(OptionError, match=f"{variable} is set.*trust_proxy") as caught:
        addresses.refuse_user_proxy(environ, trust_proxy=False)
    assert "word" not in str(caught.value)
    assert addresses.refuse_user_proxy(environ, trust_proxy=True) == environ[variable]


def test_no_proxy_and_proxies_that_cannot_be_used() -> None:
    assert addresses.refuse_user_proxy({"http_proxy": "", "PATH": "x"}, trust_proxy=False) is None
    assert addresses.refuse_user_proxy({"http_proxy": "p.example:1"}, trust_proxy=True) == "http://p.example:1"
    with pytest.raises(OptionError, match="socks5://"):
        addresses.refuse_user_proxy({"all_proxy": "socks5://p.example:1"}, trust_proxy=True)
