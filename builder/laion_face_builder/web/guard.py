"""Which addresses pictures may come from: globally routable ones, and never a name checked and another connected to.

The one rule is: resolve a host to addresses, check those, connect to those. Odd spellings ("127.1", "0x7f.1",
"2130706433", "localhost.") need no rule of their own, because what they resolve to is what is checked.

`is_public` and `AddressRule`, the tables behind the check, are in `addresses` and are had from here.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit, urlunsplit

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.web.addresses import AddressRule, is_public

__all__ = [
    "AddressRule",
    "Resolver",
    "check_port",
    "check_url",
    "is_public",
    "look_up",
    "refuse_user_proxy",
    "split_url",
    "wire_url",
]

#: Ports below 1024 that web servers use. The others belong to mail and the like, which a request could disturb.
_LOW_PORTS = frozenset({80, 443, *range(81, 91)})
_CONTROLS = re.compile(r"[\x00-\x20\x7f]")
_PROXY_VARIABLES = ("https_proxy", "http_proxy", "all_proxy", "ftp_proxy")


def check_url(url: str) -> None:
    """Refuses what is not an http(s) address with a plain host and port. The host's address is checked by `Resolver`.

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


Lookup = Callable[[str], Sequence[str]]


def look_up(host: str) -> list[str]:
    """The addresses of `host` by the system's resolver, in its order of preference (blocking).

    Raises:
        OSError, UnicodeError: it has none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class _Answer:
    until: float
    addresses: tuple[str, ...]
    reason: str = ""
    detail: str = ""


class Resolver:
    """Names to checked addresses, with a cache. For one event loop; `close` it when done.

    Args:
        allow: which addresses may be given.
        lookup: what asks the system; blocking, runs in threads of its own so that slow names do not stop others.
        timeout: seconds that a caller waits; the question goes on and fills the cache.
        ttl: seconds that an answer is kept. The system does not tell the record's own.
        negative_ttl: seconds that a failure is kept.
        max_entries: names in the cache; the longest unused go first.
        threads: questions at once.
    """

    def __init__(
        self,
        *,
        allow: Callable[[str], bool] = is_public,
        lookup: Lookup = look_up,
        timeout: float = 10.0,
        ttl: float = 600.0,
        negative_ttl: float = 60.0,
        max_entries: int = 100_000,
        threads: int = 64,
    ) -> None:
        self._allow, self._lookup = allow, lookup
        self._timeout, self._ttl, self._negative_ttl = timeout, ttl, negative_ttl
        self._max_entries = max_entries
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asked: dict[str, asyncio.Future[_Answer]] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="laion-face-dns")

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of `host` that may be connected to, best first; never empty.

        Raises:
            PictureError: "bad_url" (not a host name), "dns" (unknown, or no answer in time), "private_address" (it has
                only addresses that are refused).
        """
        check_port(port)
        name = _plain_name(host)
        answer = self._answers.get(name)
        if answer is None or answer.until < time.monotonic():
            answer = await self._ask(name)
        else:
            self._answers.move_to_end(name)
        if answer.reason:
            raise PictureError(answer.reason, answer.detail)
        return list(answer.addresses)

    def close(self) -> None:
        """Ends the threads, without waiting for questions that are still open."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, name: str) -> _Answer:
        question = self._asked.get(name)
        if question is None:
            loop = asyncio.get_running_loop()
            question = loop.run_in_executor(self._threads, self._answer, name)
            self._asked[name] = question
            question.add_done_callback(lambda done: self._keep(name, done))
        # Several may wait for the same question: one giving up must not end it. `asyncio.wait_for`, besides, forgets a
        # cancellation that comes together with the answer, before Python 3.12.
        if not (await asyncio.wait([question], timeout=self._timeout))[0]:
            raise PictureError("dns", f"{name}: no answer within {self._timeout:g} s")
        return question.result()

    def _keep(self, name: str, done: asyncio.Future[_Answer]) -> None:
        self._asked.pop(name, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._answers[name] = done.result()
        self._answers.move_to_end(name)
        while len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)

    def _answer(self, name: str) -> _Answer:
        try:
            found = self._lookup(name)
        except (OSError, UnicodeError) as error:
            return _Answer(time.monotonic() + self._negative_ttl, (), "dns", f"{name}: {error}")
        allowed = tuple(address for address in found if self._allow(address))
        if allowed:
            return _Answer(time.monotonic() + self._ttl, allowed)
        reason, detail = ("private_address", f"{name} is at {', '.join(found)}") if found else ("dns", name)
        return _Answer(time.monotonic() + self._negative_ttl, (), reason, detail)


@lru_cache(4096)
def _plain_name(host: str) -> str:
    """Kept, because the idna codec is slow and most of a stream's pictures share their hosts."""
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise PictureError("bad_url", f"{host!r} is not a host name") from error
    # An empty name, or one cut by a NUL, would resolve to something else than what is meant.
    if not name or any(character <= " " or character in "/\\@#?\x7f" for character in name):
        raise PictureError("bad_url", f"{host!r} is not a host name")
    return name
