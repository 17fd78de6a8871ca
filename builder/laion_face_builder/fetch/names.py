"""Names to addresses that may be connected to.

The one rule is: resolve a host to addresses, check those, connect to those. Odd spellings ("127.1", "0x7f.1",
"2130706433", "localhost.") need no rule of their own, because what they resolve to is what is checked.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.addresses import is_public
from laion_face_builder.fetch.guard import check_port

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
        try:
            # Shielded: several may wait for the same question, and one giving up must not end it for all.
            return await asyncio.wait_for(asyncio.shield(question), self._timeout)
        except asyncio.TimeoutError:
            raise PictureError("dns", f"{name}: no answer within {self._timeout:g} s") from None

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
