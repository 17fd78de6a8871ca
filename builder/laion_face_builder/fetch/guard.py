"""Which addresses pictures may come from: globally routable ones, and never a name checked and another connected to.

The one rule is: resolve a host to addresses, check those, connect to those. Odd spellings ("127.1", "0x7f.1",
"2130706433", "localhost.") need no rule of their own, because what they resolve to is what is checked.

`is_public` and `AddressRule`, the tables behind the check, are in `addresses` and are had from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.fetch.addresses import AddressRule, is_public

__all__ = [
    "AddressRule",
    "check_port",
    "check_url",
    "is_public",
    "refuse_user_proxy",
    "split_url",
    "wire_url",
]

#: Ports below 1024 that web servers use. The others belong to mail and the like, which a request could disturb.
_LOW_PORTS = frozenset({80, 443, *range(81, 91)})
_CONTROLS = re.compile(r"[\x00-\x20\x7f]")
_PROXY_VARIABLES = ("https_proxy", "http_proxy", "all_proxy", "ftp_proxy")


def check_url(url: str) -> None:
    """Refuses what is not an http(s) address with a plain host and port. `names.Resolver` checks the host's.

    Raises:
        PictureError: "bad_url".
    """
    split_url(url)


def split_url(url: str) -> tuple[str, str, int]:
    """Scheme, host (lower case, IPv6 without brackets) and port of a picture's address.

    Raises:
        PictureError: "bad_url": another scheme, no host, a user name, a port out of range or of another service, or
            blanks and control characters (`urllib` takes newlines out silently, which is how headers are smuggled).
    """
    if _CONTROLS.search(url):
        raise PictureError("bad_url", "blanks or control characters in the address")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:
        raise PictureError("bad_url", str(error)) from error
    if scheme not in ("http", "https"):
        raise PictureError("bad_url", f"{scheme or 'no scheme'}: expected http or https")
    if not host or "@" in parts.netloc or "\\" in parts.netloc:
        raise PictureError("bad_url", "expected a plain host without a user name")
    port = {"http": 80, "https": 443}[scheme] if port is None else port
    check_port(port)
    return scheme, host, port


def check_port(port: int) -> None:
    """Refuses ports that are none, or another service's.

    Raises:
        PictureError: "bad_url".
    """
    if not 0 < port < 65536 or (port < 1024 and port not in _LOW_PORTS):
        raise PictureError("bad_url", f"port {port} is not one that web servers use")


def wire_url(url: str) -> str:
    """`url` as it goes over the wire: letters beyond ASCII quoted, as browsers do; urllib refuses them as they are."""
    if url.isascii():
        return url
    try:
        pieces = urlsplit(url)
        host = pieces.netloc if pieces.netloc.isascii() else pieces.netloc.encode("idna").decode()
    except ValueError:  # also what the idna codec raises
        return url
    path, query = (quote(text, safe="/%:@!$&'()*+,;=~?[]|") for text in (pieces.path, pieces.query))
    return urlunsplit((pieces.scheme, host, path, query, ""))


def refuse_user_proxy(environ: Mapping[str, str], trust_proxy: bool) -> str | None:
    """The proxy that the environment asks for, if it is trusted; None if there is none.

    Args:
        environ: the environment; http_proxy, https_proxy, all_proxy and ftp_proxy count, in either case.
        trust_proxy: the user's word that this proxy keeps private addresses closed: behind it our check is its own.

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
