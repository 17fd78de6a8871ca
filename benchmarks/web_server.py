"""The hosts of the web in a box: one process, one epoll loop, one listening socket a host and port.

    python benchmarks/web_server.py PLAN CERTIFICATE        (started by bench_web.py, in namespaces of its own)

Answers are bytes that are ready before they are asked for, and go out when their host's latency is over. A host that
is unreached has a listener whose queue is full: the kernel then drops what opens a connection, as a dead host's network
does. Names are answered by `web_names`, in the same loop.

On stdin: "reset" forgets all counts, "report" writes them as a line of JSON; its end ends the process. On stdout also
"ready", and "first" when the first request after a reset has come.
"""

from __future__ import annotations

import heapq
import itertools
import os
import pickle
import re
import resource
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

import picture_server
from web_counts import Counts
from web_names import Names
from web_plan import Host, HostFate, Plan, RowFate, spread

_BYTES = 46_000
#: Requests that a host with a limit bears at once, in seconds of its rate; and what it asks for above it, seconds.
_BURST_SECONDS, _RETRY_AFTER = 1.0, 2
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


def _message(status: str, kind: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


_THROTTLED = _message("429 Too Many Requests", "text/plain", b"", f"Retry-After: {_RETRY_AFTER}")
_ANSWERS = {
    RowFate.OK.value.encode(): _message("200 OK", "image/jpeg", picture_server.picture(_BYTES)),
    RowFate.GONE.value.encode(): _message("404 Not Found", "text/plain", b"gone"),
    RowFate.HTML.value.encode(): _message("200 OK", "text/html", b"<!doctype html><title>This picture is gone</title>"),
}
_ASKED = re.compile(rb"(GET|HEAD) \S*/(ok|gone|html)/([0-9]+)\.jpg ")
#: A robots.txt as a blog's software writes it, and one of a shop's; none forbids the pictures.
_BLOG = b"User-agent: *\nDisallow: /wp-admin/\nAllow: /wp-admin/admin-ajax.php\n\nSitemap: https://example.com/s.xml\n"
_SHOP = b"User-agent: *\n" + b"".join(b"Disallow: /*?sort%d=*&dir=\nDisallow: /cart%d/\n" % (n, n) for n in range(60))
#: What hosts answer for robots.txt, in equal shares: not there, forbidden, a page of HTML, rules.
_ROBOTS = (
    *[_message("404 Not Found", "text/html", b"<!doctype html><title>gone</title>")] * 7,
    _message("403 Forbidden", "text/plain", b"no"),
    *[_message("200 OK", "text/html", b"<!doctype html><title>Welcome</title>" + b"<p>to our site" * 900)] * 2,
    *[_message("200 OK", "text/plain", _BLOG)] * 7,
    *[_message("200 OK", "text/plain", b"User-agent: *\nDisallow:\n")] * 2,
    _message("200 OK", "text/plain", _SHOP),
)


class Site:
    """A host while it is served: how many more requests it bears now."""

    def __init__(self, position: int, host: Host) -> None:
        self.position, self.host = position, host
        self.forget()

    def forget(self) -> None:
        """Forget the requests, as if nobody had come for long."""
        self._left, self._at = self.host.limit * _BURST_SECONDS, 0.0

    def bears(self, now: float) -> bool:
        """Say whether one more request is within the host's limit; those that are not cost nothing of it."""
        limit = self.host.limit
        if not limit:
            return True
        self._left = min(limit * _BURST_SECONDS, self._left + (now - self._at) * limit)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Server:
    """The event loop: file descriptors with what is done when they are ready, and a heap of what is due later."""

    def __init__(self, plan: Plan, certificate: Path) -> None:
        self.counts, self.open = Counts(), 0
        self.epoll = select.epoll()
        self.ready: dict[int, Callable[[], None]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._tls.set_alpn_protocols(["http/1.1"])
        self._plan, self._kept = plan, list[socket.socket]()
        self._sites = [Site(position, host) for position, host in enumerate(plan.hosts)]
        self.names = Names(plan, self)
        self._typed = b""
        for position, is_https in sorted({(row.host, row.is_https) for row in plan.rows}):
            self._listen(self._sites[position], is_https)
        self.watch(sys.stdin.fileno(), self._command)

    def watch(self, number: int, action: Callable[[], None]) -> None:
        """Call `action` whenever there is something to read from this file descriptor."""
        self.ready[number] = action
        self.epoll.register(number, _READ)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` once, after so many seconds."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), action))

    def run(self) -> None:
        """Serve until stdin ends."""
        while True:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else -1
            for number, _ in self.epoll.poll(wait):
                if (action := self.ready.get(number)) is not None:
                    action()

    def _listen(self, site: Site, is_https: bool) -> None:
        fate = site.host.fate
        if fate in (HostFate.UNKNOWN, HostFate.REFUSED):
            return
        address = (site.host.address, 443 if is_https else 80)
        if fate is HostFate.UNREACHED:
            self._kept += _full(address)
            return
        listener = socket.create_server(address, backlog=1024)
        listener.setblocking(False)
        self._kept.append(listener)
        tls = self._tls if is_https else None
        self.watch(listener.fileno(), lambda: self._accept(listener, site, tls))

    def _accept(self, listener: socket.socket, site: Site, tls: ssl.SSLContext | None) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        counts = self.counts
        counts.connections += 1
        self.open += 1
        counts.most_at_once = max(counts.most_at_once, self.open)
        if tls is not None and site.host.fate is HostFate.ANSWERS:
            accepted = tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        Connection(self, accepted, site)

    def _command(self) -> None:
        typed = os.read(sys.stdin.fileno(), 4096)
        if not typed:
            raise SystemExit
        *lines, self._typed = (self._typed + typed).split(b"\n")
        for line in lines:
            if line == b"reset":
                self.counts = Counts()
                for site in self._sites:
                    site.forget()
                self.names.forget()
            say(self.counts.report(self.names.asked) if line == b"report" else "done")


def _full(address: tuple[str, int]) -> list[socket.socket]:
    """Make a listener that nobody can connect to: its queue has room for one, and that one is there."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(0)
    filler = socket.create_connection(address)
    return [listener, filler]


def say(line: str) -> None:
    """Write a line to whoever started this process."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Connection:
    """One client's connection: a handshake if it is https, then requests and answers in turn.

    Mute hosts read what comes and never answer.
    """

    __slots__ = ("_asked", "_events", "_number", "_out", "_server", "_site", "_socket")

    def __init__(self, server: Server, accepted: socket.socket, site: Site) -> None:
        self._server, self._socket, self._site = server, accepted, site
        self._number, self._events = accepted.fileno(), _READ
        self._asked, self._out = b"", memoryview(b"")
        server.ready[self._number] = self._go_on
        server.epoll.register(self._number, _READ)

    def _go_on(self) -> None:
        try:
            if self._out:
                self._send()
            else:
                self._receive()
        except ssl.SSLWantReadError:
            self._wait_for(_READ)
        except BlockingIOError:
            self._wait_for(_WRITE if self._out else _READ)
        except ssl.SSLWantWriteError:
            self._wait_for(_WRITE)
        except OSError:  # it has gone, or is none that we would talk to; TLS errors are of this kind too
            self._close()

    def _receive(self) -> None:
        while True:
            received = self._socket.recv(16_384)
            if not received:
                self._close()
                return
            if self._site.host.fate is HostFate.ANSWERS:
                self._asked += received
                self._heard()

    def _heard(self) -> None:
        while (end := self._asked.find(b"\r\n\r\n")) >= 0:
            asked, self._asked = self._asked[:end], self._asked[end + 4 :]
            if asked.startswith(b"GET /robots.txt "):
                position = self._site.position
                self._send_later(position, _ROBOTS[position % len(_ROBOTS)])
                continue
            # Whatever else is asked beside pictures is not there.
            found = _ASKED.match(asked)
            self._answer(*found.groups() if found else (b"GET", b"gone", b"0"))

    def _answer(self, method: bytes, fate: bytes, digits: bytes) -> None:
        number, answer = int(digits), _ANSWERS[fate]
        if method == b"HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._send_later(number, answer)

    def _send_later(self, number: int, answer: bytes) -> None:
        counts, now = self._server.counts, time.monotonic()
        if not counts.requests:
            counts.first = now
            say("first")
        counts.requests += 1
        wait = self._site.host.latency * spread(number)
        if not self._site.bears(now):
            counts.throttled += 1
            self._server.later(wait, lambda: self._begin(_THROTTLED, None))
            return
        delivered = number if answer is _ANSWERS[b"ok"] else None
        self._server.later(wait, lambda: self._begin(answer, delivered))

    def _begin(self, answer: bytes, delivered: int | None) -> None:
        if self._socket.fileno() < 0:
            return
        self._out = memoryview(answer)
        if delivered is not None:
            self._server.counts.sent(delivered)
        self._go_on()

    def _send(self) -> None:
        while self._out:
            self._out = self._out[self._socket.send(self._out) :]
        self._wait_for(_READ)

    def _wait_for(self, events: int) -> None:
        if events != self._events:
            self._server.epoll.modify(self._number, events)
            self._events = events

    def _close(self) -> None:
        self._server.open -= 1
        self._server.ready.pop(self._number, None)
        self._server.epoll.unregister(self._number)
        self._socket.close()


def main() -> None:
    """Serve the plan in a file."""
    _, plan, certificate = sys.argv
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    server = Server(pickle.loads(Path(plan).read_bytes()), Path(certificate))
    say("ready")
    server.run()


if __name__ == "__main__":
    main()
