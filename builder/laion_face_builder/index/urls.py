"""Take addresses apart: their host and port, and one spelling where only the case of the host differs.

Most addresses of a part are plain: lower-case scheme and host, nothing beyond ASCII. They are dealt with as columns;
the few others one by one, as Python's own parser reads them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_PLAIN = r"^[a-z][a-z0-9+.\-]*://[a-z0-9_.\-]*[a-z0-9_\-](:[1-9][0-9]{0,4})?(/[!-~]*)?$"
#: DNS has no longer names (RFC 1035), and a hostile address could have a hundred thousand labels.
_LONGEST_HOST = 253
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def host_of(url: str | None) -> str:
    """Give the host of a URL in lower case, without a trailing dot; empty if there is none."""
    try:
        return (urlsplit(url or "").hostname or "").rstrip(".")
    except ValueError:
        return ""


def place_of(url: str) -> tuple[str, str]:
    """Give host (as `one_spelling`) and port of a URL; the port is the scheme's own if none is said, "" if unknown."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return one_spelling(host_of(url)), ""
    return one_spelling(parts.hostname or ""), str(port or _DEFAULT_PORTS.get(parts.scheme.lower(), ""))


def place_of_origin(origin: str) -> tuple[str, str]:
    """Give host and port of what `origins_of` gives, without the detours of `urlsplit`."""
    scheme, _, rest = origin.partition("://")
    host, _, port = rest.partition(":")
    return host, port or _DEFAULT_PORTS.get(scheme, "")


def one_spelling(host: str) -> str:
    """Give a host in lower case and in ASCII, without a trailing dot; IPv6 in brackets and as short as it gets."""
    host = host.lower().rstrip(".")
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host.strip('[]'))}]"
        except ValueError:
            return host
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def canonical_url(url: str) -> str:
    """Write a URL's scheme and host in lower case; the rest, with a user name and all, stays as it is."""
    scheme, mark, rest = url.strip().partition("://")
    if not mark:
        return url.strip()
    end = re.match(r"[^/?#]*", rest).end()  # type: ignore[union-attr]  # it matches nothing too
    user, at, host = rest[:end].rpartition("@")
    return f"{scheme.lower()}://{user}{at}{host.lower()}{rest[end:]}"


def are_plain(urls: pa.Array) -> pa.Array:
    """Tell, bool[n] without nulls, which addresses are spelled as `canonical_url` would, with a host as `place_of`."""
    return pc.fill_null(pc.match_substring_regex(urls, _PLAIN), False)


def origins_of(plain: pa.Array) -> pa.Array:
    """Give scheme://host:port, string[n], of plain addresses."""
    pieces = pc.split_pattern(plain, "/", max_splits=3)
    return pc.binary_join_element_wise(pc.list_element(pieces, 0), pc.list_element(pieces, 2), "//")


def addresses_named(
    urls: pa.Array,
    names_url: Callable[[str | None], bool] | None,
    names_host: Callable[[str, str], bool] | None,
    names_address: Callable[[str], bool],
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell, bool[n], which addresses are named: plain ones as columns, each host once.

    Args:
        urls: string[n].
        names_url: whether an address that is written as `canonical_url` is named itself; None if none is.
        names_host: whether a host and port, as `place_of` gives them, are named; None if no host is.
        names_address: both, of an address that is written in some other way.
    """
    plain = are_plain(urls)
    is_plain = plain.to_numpy(zero_copy_only=False)
    named = np.zeros(len(urls), bool)
    if names_url is not None:
        named[is_plain] = np.fromiter(map(names_url, urls.filter(plain).to_pylist()), bool)
    if names_host is not None:
        origins = origins_of(urls.filter(plain)).dictionary_encode()
        hosts = (names_host(*place_of_origin(origin)) for origin in origins.dictionary.to_pylist())
        named[is_plain] |= np.fromiter(hosts, bool)[origins.indices.to_numpy()]
    others = np.flatnonzero(~is_plain & urls.is_valid().to_numpy(zero_copy_only=False))
    for row, text in zip(others, urls.take(pa.array(others)).to_pylist(), strict=True):
        named[row] = names_address(text)
    return named


def domains_of(host: str) -> Iterator[tuple[str, bool]]:
    """Yield a host and the domains above it, each with whether it is above; nothing of what is too long to be one."""
    domain, is_above = host if len(host) <= _LONGEST_HOST else "", False
    while domain:
        yield domain, is_above
        domain, is_above = domain.partition(".")[2], True
