"""Read the addresses of pictures as browsers do, and tell which may be connected to.

Pictures come from globally routable addresses alone. Our own tables are used, not `ipaddress.is_global`, whose answers
changed between Python 3.10 and 3.13 (mapped addresses, 192.0.0.0/24, 64:ff9b:1::/48, documentation networks). Source:
IANA's special-purpose address registries. A network's own NAT64 prefix, if it is not the well-known one, looks like any
other address and cannot be recognised.

The one rule is: resolve a host to addresses, check those, connect to those. Odd spellings ("127.1", "0x7f.1",
"2130706433", "localhost.") need no rule of their own, because what they resolve to is what is checked.

What data sets and Location headers hold was written for browsers: blanks around it and in it, letters beyond ASCII,
backslashes, names in any script. A browser makes plain ASCII of it by the URL standard (https://url.spec.whatwg.org);
so does this, once, and only what comes out is checked, resolved and sent: nothing can be read in two ways.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import quote, unquote, urljoin, urlsplit

import idna

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.images.reasons import Reason

_CLOSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carriers' shared space
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and the clouds' metadata servers
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # former 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo, which embeds IPv4, is one
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: embeds IPv4, given up in 2015
            "3fff::/20",  # documentation
        ),
    )
)
#: Embeds IPv4; on networks with IPv6 alone all IPv4 hosts resolve to it, so it is open where the embedded one is.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Say whether `address`, IPv4 or IPv6 as text, is globally routable unicast. Names and scoped ones are not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in _CLOSED_V4)
    if found.ipv4_mapped is not None:
        return is_public(str(found.ipv4_mapped))
    if found in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    # An IPv6Address with a scope ("fe80::1%eth0") is never global, whatever stands before the scope.
    return "%" not in address and found in _GLOBAL_V6 and not any(found in network for network in _CLOSED_V6)


@dataclass(frozen=True)
class AddressRule:
    """Which addresses may be connected to; a plain value, so that it travels to a child process.

    Attributes:
        allow_private: whether every address may be connected to.
        also_public: networks ("192.0.2.0/24") that count as public too; for tests, which have loopback only.
    """

    allow_private: bool = False
    also_public: tuple[str, ...] = ()

    def __call__(self, address: str) -> bool:
        """Say whether `address` may be connected to."""
        if self.allow_private or is_public(address):
            return True
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in self.also_public)


__all__ = ["AddressRule", "is_public", "refuse_user_proxy"]
_PROXY_VARIABLES = ("https_proxy", "http_proxy", "all_proxy", "ftp_proxy")


def refuse_user_proxy(environ: Mapping[str, str], trust_proxy: bool) -> str | None:
    """Return the proxy that the environment asks for, if it is trusted; None if there is none.

    Args:
        environ: the environment; http_proxy, https_proxy, all_proxy and ftp_proxy count, in either case.
        trust_proxy: the user's word that this proxy keeps private addresses closed: it then does our check.

    Returns:
        "http://[user:password@]host:port". https_proxy is preferred where several are set.

    Raises:
        OptionError: there is a proxy and it is not trusted, or it is not an http:// one.
    """
    for name in _PROXY_VARIABLES:
        for variable in (name, name.upper()):
            if not (address := environ.get(variable, "").strip()):
                continue
            if not trust_proxy:
                raise OptionError(
                    f"{variable} is set: behind a proxy nobody here can check which addresses pictures come from. "
                    "Unset it, or set trust_proxy if that proxy keeps private addresses closed"
                )
            if "://" not in address:
                address = f"http://{address}"
            if not address.lower().startswith("http://"):
                raise OptionError(f"{variable}: only http:// proxies can be used, not {address.partition(':')[0]}://")
            return address
    return None


#: Ports below 1024 that web servers use. The others belong to mail and the like, which a request could disturb.
_LOW_PORTS = frozenset({80, 443, *range(81, 91)})
_PORTS = {"http": 80, "https": 443}
_BLANKS = "".join(map(chr, range(0x21)))
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
#: What may stand in a path and in a query as it is, beside letters and digits.
_PATH_SAFE, _QUERY_SAFE = "/%:@!$&'()*+,;=~[]|", "/%:@!$&()*+,;=~?[]|\\^`{}"
#: What a host can neither hold nor mean.
_NOT_IN_HOST = re.compile(r"[\x00-\x20\x7f#%/<>?@\\^|\[\]]")
#: A path and a query of nothing that would be quoted: most are.
_PLAIN = re.compile(r"[\w/%:@!$&()*+,;=~.\-|?]*", re.ASCII)
_MOST_OF_A_NAME = 253


@dataclass(frozen=True, slots=True)
class WebAddress:
    """An http(s) address in plain ASCII.

    Attributes:
        url: as it goes over the wire, without a fragment.
        scheme: "http" or "https".
        host: lower case; IPv6 without brackets.
        port: the default one if none is named.
    """

    url: str
    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> WebAddress:
        """Parse an address as a data set gives it.

        Raises:
            PictureError: "bad_url": another scheme, no or no possible host, a user name, a port out of range or of
                another service, or control characters (`urllib` takes newlines out silently, which is how headers are
                smuggled; here only blanks around an address and tabs in it mean nothing).
        """
        try:
            return _of(_tidy(text))
        except ValueError as error:  # `urlsplit`'s, and what no codec can encode
            raise PictureError(Reason.BAD_URL, str(error)[:200]) from None

    def follow(self, location: bytes) -> WebAddress:
        """Return the address that a Location header leads to from here.

        Args:
            location: the header's value. Bytes beyond ASCII are passed on as they are, whatever they stand for.

        Raises:
            PictureError: "bad_url", as `parse`.
        """
        try:
            text = _tidy(_BEYOND_ASCII.sub(lambda found: b"%%%02X" % ord(found[0]), location).decode("ascii"))
            return _of(urljoin(self.url, text))
        except ValueError as error:
            raise PictureError(Reason.BAD_URL, str(error)[:200]) from None


def check_port(port: int) -> None:
    """Refuse ports that are none, or another service's.

    Raises:
        PictureError: "bad_url".
    """
    if not 0 < port < 65536 or (port < 1024 and port not in _LOW_PORTS):
        raise PictureError(Reason.BAD_URL, f"port {port} is not one that web servers use")


def _tidy(text: str) -> str:
    text = text.strip(_BLANKS).replace("\t", "")
    if _CONTROLS.search(text):
        raise PictureError(Reason.BAD_URL, "control characters in the address")
    return text


def _of(text: str) -> WebAddress:
    parts = urlsplit(text)
    scheme, host = parts.scheme.lower(), parts.hostname
    if scheme not in _PORTS:
        raise PictureError(Reason.BAD_URL, f"{scheme or 'no scheme'}: expected http or https")
    if not host or "@" in parts.netloc or "\\" in parts.netloc:
        raise PictureError(Reason.BAD_URL, "expected a plain host without a user name")
    is_literal = "[" in parts.netloc
    host = _ipv6(host) if is_literal else _ascii_name(host)
    port = _PORTS[scheme] if parts.port is None else parts.port
    check_port(port)
    place = f"[{host}]" if is_literal else host
    if port != _PORTS[scheme]:
        place = f"{place}:{port}"
    rest = parts.path or "/"
    if parts.query:
        rest = f"{rest}?{parts.query}"
    if not _PLAIN.fullmatch(rest):
        rest = _quoted(parts.path, parts.query)
    return WebAddress(f"{scheme}://{place}{rest}", scheme, host, port)


def _ipv6(host: str) -> str:
    if "%" in host:
        raise PictureError(Reason.BAD_URL, f"{host[:80]!r} names an interface of this machine")
    return str(IPv6Address(host))


def _quoted(path: str, query: str) -> str:
    path = quote(path.replace("\\", "/"), safe=_PATH_SAFE) or "/"
    return f"{path}?{quote(query, safe=_QUERY_SAFE)}" if query else path


@lru_cache(4096)
def _ascii_name(host: str) -> str:
    """Return the host name in lower-case ASCII, if it can be one.

    Cached, because names beyond ASCII are slow and most of a stream's pictures share their hosts.
    """
    if "%" in host:
        host = unquote(host, errors="strict")
    if not host.isascii():
        host = _punycode(host)
    host = host.lower()
    if not host or _NOT_IN_HOST.search(host) or len(host) > _MOST_OF_A_NAME:
        raise PictureError(Reason.BAD_URL, f"{host[:80]!r} is not a host name")
    if any(not 0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        raise PictureError(Reason.BAD_URL, f"{host[:80]!r}: a part of it is empty or too long")
    return host


def _punycode(host: str) -> str:
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        # The rules of 2003 know names that those of 2008 refuse and browsers still open, such as emoji.
        return host.encode("idna").decode("ascii")
