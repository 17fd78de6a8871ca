"""Resolve host names to addresses that may be connected to.

The one rule is: resolve a host to addresses, check those, connect to those. Odd spellings ("127.1", "0x7f.1",
"2130706433", "localhost.") need no rule of their own, because what they resolve to is what is checked.

That a name is unknown is an answer, and kept for a while. A missing answer (EAI_AGAIN, a lost or slow name server) is
never kept: there may be one the next time.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from queue import SimpleQueue

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import open_files
from laion_face_builder.fetch.addresses import check_port, is_public
from laion_face_builder.fetch.open_files import NoFiles
from laion_face_builder.images.reasons import Reason

Lookup = Callable[[str], Sequence[str]]

#: What the system's resolver says of a name for good. Whatever else it says may be another thing the next time.
_UNKNOWN = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME), socket.EAI_FAIL})


class NoAnswer(PictureError):
    """Nobody said whether there is such a name, or not in time; counted as "dns", like unknown ones."""


def look_up(host: str) -> list[str]:
    """Return the addresses of `host` by the system's resolver, in its order of preference (blocking).

    Raises:
        OSError, UnicodeError: it has none, or nobody answered.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class _Answer:
    until: float
    addresses: tuple[str, ...]
    reason: str = ""
    detail: str = ""


class _Askers:
    """Threads for questions that block. They are started as needed, and nobody waits for them, not even at exit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = self._open = 0
        self._lock = threading.Lock()
        self._questions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def ask(self, question: Callable[[], None]) -> None:
        """Have `question` called in one of the threads."""
        with self._lock:
            self._open += 1
            is_needed = self._count < min(self._open, self._most)
            self._count += is_needed
        self._questions.put(question)
        if is_needed:
            threading.Thread(target=self._work, name="laion-face-dns", daemon=True).start()

    def close(self) -> None:
        """End the threads: those that are idle now, the others after their question."""
        for _ in range(self._count):
            self._questions.put(None)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            question()
            with self._lock:
                self._open -= 1


class Resolver:
    """Resolves names to checked addresses, with a cache. For one event loop; `close` it when done.

    Args:
        allow: which addresses may be given.
        lookup: what asks the system; blocking, runs in threads of its own so that slow names do not stop others.
            An OSError, unless it says that the name is unknown, means that nobody answered.
        timeout: seconds that a caller waits; the question goes on and fills the cache.
        ttl: seconds that an answer is kept. The system does not tell the record's own.
        negative_ttl: seconds that an unknown name is kept, or one at addresses that are refused.
        max_entries: names in the cache; the longest unused go first.
        threads: questions at once. With 5 % of the names at 10 s, 64 would hold all down to 109 a second.
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
        threads: int = 512,
    ) -> None:
        self._allow, self._lookup = allow, lookup
        self._timeout, self._ttl, self._negative_ttl = timeout, ttl, negative_ttl
        self._max_entries = max_entries
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asked: dict[str, asyncio.Future[_Answer]] = {}
        self._askers = _Askers(threads)
        self._is_closed = False

    def knows(self, host: str) -> bool:
        """Say whether `resolve` would answer, or refuse, at once."""
        try:
            answer = self._answers.get(_plain_name(host))
        except PictureError:
            return True
        return answer is not None and answer.until >= time.monotonic()

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host` that may be connected to, best first; never empty.

        Raises:
            PictureError: "bad_url" (not a host name), "dns" (unknown), "private_address" (it has only addresses
                that are refused); NoAnswer: nobody says, or not in time; NoFiles.
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
        """End the threads, without waiting for questions that are still open."""
        self._is_closed = True
        self._askers.close()

    async def _ask(self, name: str) -> _Answer:
        question = self._asked.get(name)
        if question is None:
            question = self._asked[name] = asyncio.get_running_loop().create_future()
            self._askers.ask(partial(self._work, name, question))
        # Several may wait for the same question: one giving up must not end it. `asyncio.wait_for`, besides, forgets a
        # cancellation that comes together with the answer, before Python 3.12.
        if not (await asyncio.wait([question], timeout=self._timeout))[0]:
            raise NoAnswer(Reason.DNS, f"{name}: no answer within {self._timeout:g} s")
        return question.result()

    def _work(self, name: str, question: asyncio.Future[_Answer]) -> None:
        """Answer one question, in one of the threads."""
        answer: _Answer | BaseException
        try:
            answer = self._answer(name)
        except (NoAnswer, NoFiles) as error:
            answer = error
        except Exception as error:
            answer = NoAnswer(Reason.DNS, f"{name}: {error!r}")
        if not self._is_closed:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                question.get_loop().call_soon_threadsafe(self._keep, name, question, answer)

    def _keep(self, name: str, question: asyncio.Future[_Answer], answer: _Answer | BaseException) -> None:
        self._asked.pop(name, None)
        if isinstance(answer, BaseException):
            question.set_exception(answer)
            question.exception()  # it may be that nobody waits any more
            return
        question.set_result(answer)
        self._answers[name] = answer
        self._answers.move_to_end(name)
        while len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)

    def _answer(self, name: str) -> _Answer:
        try:
            found = self._lookup(name)
        except (OSError, UnicodeError) as error:
            if open_files.are_gone(error) or open_files.are_gone():
                raise NoFiles from None  # the system's resolver says then that there is no such name
            return self._failed(name, error)
        allowed = tuple(address for address in found if self._allow(address))
        if allowed:
            return _Answer(time.monotonic() + self._ttl, allowed)
        reason, detail = (Reason.PRIVATE_ADDRESS, f"{name} is at {', '.join(found)}") if found else (Reason.DNS, name)
        return _Answer(time.monotonic() + self._negative_ttl, (), reason, detail)

    def _failed(self, name: str, error: Exception) -> _Answer:
        is_answer = isinstance(error, socket.gaierror) and error.errno in _UNKNOWN
        if isinstance(error, OSError) and not is_answer:
            raise NoAnswer(Reason.DNS, f"{name}: {error}") from None
        return _Answer(time.monotonic() + self._negative_ttl, (), Reason.DNS, f"{name}: {error}")


@lru_cache(4096)
def _plain_name(host: str) -> str:
    """Return the host name in lower-case ASCII (IDNA).

    Cached, because the idna codec is slow and most of a stream's pictures share their hosts.
    """
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise PictureError(Reason.BAD_URL, f"{host!r} is not a host name") from error
    # An empty name, or one cut by a NUL, would resolve to something else than what is meant.
    if not name or any(character <= " " or character in "/\\@#?\x7f" for character in name):
        raise PictureError(Reason.BAD_URL, f"{host!r} is not a host name")
    return name
