"""proxy: what img2dataset's urllib can reach, and what it costs at most (law 7). Real sockets on the loopback.

Everything here is loopback, so the rule under test takes 127.0.0.1 for public; 127.0.0.2 stays private.
"""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import DownloadError, PictureError
from laion_face_builder.fetch.guard import AddressRule
from laion_face_builder.proxy.guard_proxy import GuardProxy, ProxyLimits
from laion_face_builder.proxy.wire import Refusal, parse_answer, parse_request, request_head

RULE = AddressRule(also_public=("127.0.0.1/32",))
BODY = bytes(range(256)) * 200
MAX_BYTES = 200_000
# Made for this test and known to everybody: it protects nothing.
CERTIFICATE = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgW2Ia4py+orL05+YU
WkzR66FMOKp1u+RqTIpsetlLrAKhRANCAASl8TkiZNYMZLIA1vVyorEMdbpLSKUu
t2QbpcIl4SoJqunHSdt7zcrizotv8lwvzPzr0EQ0cQe/Ki8qZJk9+xZB
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBijCCATCgAwIBAgITV7G3jNR4PfoO+aEUlDilTqvcZDAKBggqhkjOPQQDAjAa
MRgwFgYDVQQDDA9sYWlvbi1mYWNlIHRlc3QwIBcNMjYxMTIyMTkyODEyWhgPMjEy
NjEwMjkxOTI4MTJaMBoxGDAWBgNVBAMMD2xhaW9uLWZhY2UgdGVzdDBZMBMGByqG
SM49AgEGCCqGSM49AwEHA0IABKXxOSJk1gxksgDW9XKisQx1uktIpS63ZBulwiXh
Kgmq6cdJ23vNyuLOi2/yXC/M/OvQRDRxB78qLypkmT37FkGjUzBRMB0GA1UdDgQW
BBS3N314XOGwRHjV7l3Buu18O/0SBTAfBgNVHSMEGDAWgBS3N314XOGwRHjV7l3B
uu18O/0SBTAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIEs8MkCk
89NsFpxnyIyvc3OA7vH1njD0f2fE1jozOBG7AiEA7r+9EvuL7cyNGvVU5xTK/vU6
PRJL63HRa2YbuPCHXdU=
-----END CERTIFICATE-----
"""


def plain(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "\r\n"]
    return "\r\n".join(lines).encode() + body


class Origin(socketserver.ThreadingTCPServer):
    """A picture host with bad habits, one a path. Counts requests and how many it had at once."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100

    def __init__(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__((address, 0), Habits)
        self.tls = tls
        self.seen: Counter[str] = Counter()
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.let_go = threading.Event()
        self.port = self.server_address[1]
        self.root = f"{'https' if tls else 'http'}://{address}:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """The proxy hangs up on many of them: that is the point."""


class Habits(socketserver.BaseRequestHandler):
    server: Origin

    def handle(self) -> None:
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.request.recv(65536)
            if not piece:
                return
            head += piece
        target = head.split(b" ", 2)[1].decode()
        path = target if target.startswith("/") else "/" + target.split("/", 3)[3]
        with self.server.lock:
            self.server.seen[path] += 1
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        try:
            getattr(self, path.strip("/").split("?")[0].replace("-", "_"))(head)
        finally:
            with self.server.lock:
                self.server.busy -= 1
            if self.server.tls is not None:
                with suppress(OSError):
                    self.request.unwrap()
                self.request.close()

    def send(self, data: bytes) -> None:
        self.request.sendall(data)

    def ok(self, _: bytes) -> None:
        self.send(plain(BODY))

    def echo(self, head: bytes) -> None:
        self.send(plain(head))

    def close(self, _: bytes) -> None:
        self.send(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)

    def bare(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\nX-Robots-Tag: noai\n\n" + BODY)

    def chunked(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n")
        for start in range(0, len(BODY), 9_000):
            piece = BODY[start : start + 9_000]
            self.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.send(b"0\r\n\r\n")

    def chunked_and_kept_open(self, head: bytes) -> None:
        self.chunked(head)
        self.request.recv(1)

    def continues(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n" + plain(BODY))

    def spoof(self, _: bytes) -> None:
        self.send(plain(b"", "X-LAION-Face-Reason: private_address", status="404 private_address"))

    def short(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + BODY[:500])

    def chunked_short(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" + BODY[:500] + b"\r\n")

    def close_reset(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\n\r\n" + BODY[:500])
        time.sleep(0.1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()

    def declared(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1) + BODY)

    def endless(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            self.send(BODY)

    def endless_chunked(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self.send(b"%x\r\n%b\r\n" % (len(BODY), BODY))

    def drip(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            self.send(b"x")
            time.sleep(0.02)

    def drip_headers(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.send(b"X: y\r\n")
            time.sleep(0.02)

    def huge_headers(self, _: bytes) -> None:
        while True:
            self.send(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 60_000 + b"\r\n")

    def garbage(self, _: bytes) -> None:
        self.send(b"SSH-2.0-OpenSSH\r\n\r\n")

    def two_lengths(self, _: bytes) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")

    def silent(self, _: bytes) -> None:
        self.request.recv(1)

    def held(self, _: bytes) -> None:
        self.server.let_go.wait(20)
        self.send(plain(BODY))

    def to_private(self, _: bytes) -> None:
        self.send(plain(b"", f"Location: http://127.0.0.2:{self.server.port}/ok", status="302 Found"))

    def to_ftp(self, _: bytes) -> None:
        self.send(plain(b"", "Location: ftp://127.0.0.1/x", status="302 Found"))


@pytest.fixture(autouse=True)
def no_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib asks the environment for hosts to go to directly, even where it is given its proxies by hand."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def tls_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with Origin(tls=context) as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def proxy() -> Iterator[GuardProxy]:
    with GuardProxy(ProxyLimits(timeout=20, max_bytes=MAX_BYTES), rule=RULE) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[GuardProxy]:
    with GuardProxy(ProxyLimits(timeout=0.6, max_bytes=MAX_BYTES, per_host=2), rule=RULE) as running:
        yield running


def get(proxy: GuardProxy, url: str, method: str = "GET") -> bytes:
    """As img2dataset does it: urllib, led by its environment variables."""
    # The certificate is self-signed and nobody's business here: the proxy does not look into tunnels.
    context = ssl._create_unverified_context()
    handler = urllib.request.ProxyHandler(
        {name.removesuffix("_proxy"): value for name, value in proxy.environment().items() if value}
    )
    opener = urllib.request.build_opener(handler, urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "test"})
    with opener.open(request, timeout=30) as answer:
        return answer.read()


def raw(proxy: GuardProxy, request: str, credentials: str | None = None) -> bytes:
    parts = urlsplit(proxy.url)
    known = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    line = f"Proxy-Authorization: Basic {known if credentials is None else credentials}\r\n"
    with socket.create_connection(("127.0.0.1", parts.port), timeout=30) as plug:
        first, _, others = request.partition("\r\n")
        plug.sendall(f"{first}\r\n{line}{others}\r\n".encode("latin-1"))
        with suppress(ConnectionResetError):
            found = b""
            while piece := plug.recv(65536):
                found += piece
        return found


def reason_of(proxy: GuardProxy, url: str) -> str:
    with pytest.raises((urllib.error.URLError, OSError)) as caught:
        get(proxy, url)
    if isinstance(caught.value, urllib.error.HTTPError):
        caught.value.close()
    return str(caught.value)


@pytest.mark.parametrize("path", ["ok", "close", "bare", "chunked", "chunked-and-kept-open", "continues", "ok?a=b/c#d"])
def test_bodies_in_every_framing_arrive_whole(proxy: GuardProxy, origin: Origin, path: str) -> None:
    assert get(proxy, f"{origin.root}/{path}") == BODY


@pytest.mark.parametrize("path", ["ok", "close", "chunked"])
def test_tls(proxy: GuardProxy, tls_origin: Origin, path: str) -> None:
    assert get(proxy, f"{tls_origin.root}/{path}") == BODY


def test_head(proxy: GuardProxy, origin: Origin) -> None:
    assert get(proxy, f"{origin.root}/ok", method="HEAD") == b""


def test_what_the_origin_is_told(proxy: GuardProxy, origin: Origin) -> None:
    told = get(proxy, f"{origin.root}/echo?#fragment").decode()
    assert told.startswith(f"GET /echo? HTTP/1.1\r\nHost: 127.0.0.1:{origin.port}\r\n")
    assert "User-Agent: test" in told
    assert told.count("Connection: close") == 1
    assert "proxy" not in told.lower()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost:{port}/ok", "http://127.1:{port}/ok", "http://2130706433:{port}/ok",
     "http://[::1]:{port}/ok", "http://[::ffff:127.0.0.1]:{port}/ok", "http://169.254.169.254/latest/meta-data",
     "https://127.0.0.1:{port}/ok", "https://localhost:{port}/ok", "http://10.0.0.1/"],
)  # fmt: skip
def test_private_addresses_are_refused_by_default(origin: Origin, url: str) -> None:
    before = origin.seen.total()
    with GuardProxy(ProxyLimits()) as strict:
        assert "403" in (said := reason_of(strict, url.format(port=origin.port)))
        assert "private_address" in said
    assert origin.seen.total() == before
    assert strict.stats()["reasons"] == {"private_address": 1}


def test_private_addresses_on_request(origin: Origin) -> None:
    with GuardProxy(ProxyLimits(allow_private_hosts=True)) as open_to_all:
        assert get(open_to_all, f"http://localhost:{origin.port}/ok") == BODY


def test_a_redirect_to_a_private_address(proxy: GuardProxy, origin: Origin) -> None:
    before = origin.seen["/ok"]
    assert "HTTP Error 403: private_address" in reason_of(proxy, f"{origin.root}/to-private")
    assert origin.seen["/ok"] == before


def test_ftp_is_refused_directly_and_by_redirect(proxy: GuardProxy, origin: Origin) -> None:
    assert "403" in (said := reason_of(proxy, "ftp://127.0.0.1/x"))
    assert "bad_url" in said
    assert "bad_url" in reason_of(proxy, f"{origin.root}/to-ftp")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("POST http://127.0.0.1:{port}/ok HTTP/1.1\r\n", 405),
        ("GET http://127.0.0.1:{port}/ok HTTP/1.0\r\n", 505),
        ("GET /ok HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n", 403),
        ("GET file:///etc/passwd HTTP/1.1\r\n", 403),
        ("GET https://127.0.0.1:{port}/ok HTTP/1.1\r\n", 403),
        ("GET http://127.0.0.1:25/ HTTP/1.1\r\n", 403),
        ("GET http://127.0.0.1:{port}/ok HTTP/1.1\r\nContent-Length: 3\r\n", 400),
        ("GET http://127.0.0.1:{port}/ok HTTP/1.1\r\nX: a\nY: b\r\n", 400),
        ("GET http://127.0.0.1:{port}/o k HTTP/1.1\r\n", 400),
        ("CONNECT 127.0.0.1 HTTP/1.1\r\n", 400),
        ("CONNECT 127.0.0.1:22 HTTP/1.1\r\n", 403),
        ("CONNECT 127.0.0.2:{port} HTTP/1.1\r\n", 403),
        ("CONNECT user@127.0.0.1:{port} HTTP/1.1\r\n", 403),
        ("CONNECT 127.0.0.1:{port}/x:1 HTTP/1.1\r\n", 400),
        ("\x80\x81 nothing\r\n", 400),
    ],
)
def test_everything_else_is_refused(proxy: GuardProxy, origin: Origin, request_: str, status: int) -> None:
    before = origin.seen.total()
    assert raw(proxy, request_.format(port=origin.port)).startswith(f"HTTP/1.1 {status} ".encode())
    assert origin.seen.total() == before


@pytest.mark.parametrize("credentials", ["", "AAAA", base64.b64encode(b"laion-face:").decode()])
@pytest.mark.parametrize("method", ["GET http://127.0.0.1:{port}/ok", "CONNECT 127.0.0.1:{port}"])
def test_only_who_knows_the_secret(proxy: GuardProxy, origin: Origin, method: str, credentials: str) -> None:
    before = origin.seen.total()
    said = raw(proxy, f"{method.format(port=origin.port)} HTTP/1.1\r\n", credentials)
    assert said.startswith(b"HTTP/1.1 407 bad_credentials")
    assert origin.seen.total() == before


@pytest.mark.parametrize("path", ["short", "chunked-short", "close-reset", "endless", "endless-chunked"])
def test_a_cut_body_is_never_taken_for_a_whole_one(proxy: GuardProxy, origin: Origin, path: str) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(proxy, f"{origin.root}/{path}")


@pytest.mark.parametrize("path", ["short", "endless", "endless-chunked"])
def test_nor_through_tls(proxy: GuardProxy, tls_origin: Origin, path: str) -> None:
    with pytest.raises((http.client.IncompleteRead, OSError)):
        get(proxy, f"{tls_origin.root}/{path}")


@pytest.mark.parametrize("path", ["drip", "drip-headers", "silent"])
@pytest.mark.parametrize("tls", [False, True])
def test_slow_hosts_are_cut(hasty: GuardProxy, origin: Origin, tls_origin: Origin, path: str, tls: bool) -> None:
    before = hasty.stats()["reasons"].get("timeout", 0)
    with pytest.raises((http.client.HTTPException, OSError)):
        get(hasty, f"{(tls_origin if tls else origin).root}/{path}")
    assert hasty.stats()["reasons"]["timeout"] == before + 1


def test_a_silent_host_is_named_in_the_status_line(hasty: GuardProxy, origin: Origin) -> None:
    assert "HTTP Error 504: timeout" in reason_of(hasty, f"{origin.root}/silent")


def test_an_idle_client_is_cut(hasty: GuardProxy) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(hasty.url).port), timeout=30) as plug:
        assert plug.recv(1000).startswith(b"HTTP/1.1 504 timeout")
        assert plug.recv(1000) == b""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("declared", "HTTP Error 413: too_large"),
        ("huge-headers", "HTTP Error 502: too_large"),
        ("garbage", "HTTP Error 502: bad_response"),
        ("two-lengths", "HTTP Error 502: bad_response"),
        ("spoof", "HTTP Error 404: Not Found"),
    ],
)
def test_bad_answers(proxy: GuardProxy, origin: Origin, path: str, said: str) -> None:
    assert said in reason_of(proxy, f"{origin.root}/{path}")


def test_hosts_that_are_not_there(proxy: GuardProxy) -> None:
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))  # bound, not listening
        port = plug.getsockname()[1]
        assert "HTTP Error 502: refused" in reason_of(proxy, f"http://127.0.0.1:{port}/")
        assert "Tunnel connection failed: 502 refused" in reason_of(proxy, f"https://127.0.0.1:{port}/")
    assert "HTTP Error 502: dns" in reason_of(proxy, "http://nowhere.invalid/")
    assert "bad_url" in reason_of(proxy, f"http://{'a' * 64}.example/")


def test_connections_to_one_host_are_bounded_and_others_do_not_wait() -> None:
    limits = ProxyLimits(timeout=20, per_host=3)
    with Origin() as busy, Origin() as other, GuardProxy(limits, rule=AddressRule(allow_private=True)) as proxy:
        with ThreadPoolExecutor(12) as threads:
            waiting = [threads.submit(get, proxy, f"{busy.root}/held") for _ in range(12)]
            while proxy.stats()["active"] < 12 or busy.busy < 3:
                time.sleep(0.01)
            # The same host by another name: turns are by name.
            assert get(proxy, f"http://localhost:{other.port}/ok") == BODY
            assert busy.busy == 3
            busy.let_go.set()
            assert all(done.result() == BODY for done in waiting)
        assert busy.most_busy == 3
        assert busy.seen["/held"] == 12
        busy.shutdown()
        other.shutdown()


def test_who_waits_in_vain_is_answered_and_the_turn_comes_back() -> None:
    limits = ProxyLimits(timeout=1.0, per_host=1)
    with Origin() as busy, GuardProxy(limits, rule=RULE) as proxy:
        with ThreadPoolExecutor(3) as threads:
            late = [threads.submit(reason_of, proxy, f"{busy.root}/held") for _ in range(3)]
            assert all("504: timeout" in done.result() for done in late)
        busy.let_go.set()
        assert get(proxy, f"{busy.root}/ok") == BODY
        busy.shutdown()


def test_a_client_that_leaves_frees_its_turn() -> None:
    with Origin() as busy, GuardProxy(ProxyLimits(timeout=60, per_host=1), rule=RULE) as proxy:
        parts = urlsplit(proxy.url)
        token = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
        with socket.create_connection(("127.0.0.1", parts.port)) as plug:
            line = f"GET {busy.root}/held HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n\r\n"
            plug.sendall(line.encode())
            while not busy.busy:
                time.sleep(0.01)
        assert get(proxy, f"{busy.root}/ok") == BODY
        while proxy.stats()["active"]:
            time.sleep(0.01)
        assert proxy.stats()["reasons"] == {"client_left": 1, "ok": 1}
        busy.let_go.set()
        busy.shutdown()


def test_nothing_stays_open(proxy: GuardProxy, origin: Origin, tls_origin: Origin) -> None:
    def open_files() -> int:
        return len(os.listdir(f"/proc/{proxy.process_id}/fd"))

    get(proxy, f"{origin.root}/ok")
    before = open_files()
    paths = ["ok", "close", "chunked", "short", "endless", "garbage", "close-reset", "declared"] * 3
    for path in paths:
        for root in (origin.root, tls_origin.root):
            with suppress(OSError, http.client.HTTPException):
                get(proxy, f"{root}/{path}")
    while proxy.stats()["active"]:
        time.sleep(0.01)
    end = time.monotonic() + 10
    while open_files() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert open_files() <= before


def test_through_another_proxy(origin: Origin, tls_origin: Origin) -> None:
    # Ours stands in for the user's own: it asks for credentials too, and decides about addresses.
    with GuardProxy(ProxyLimits(max_bytes=MAX_BYTES * 2), rule=RULE) as theirs:
        limits = ProxyLimits(max_bytes=MAX_BYTES)
        with GuardProxy(limits, upstream_proxy=theirs.url) as proxy:
            assert get(proxy, f"{origin.root}/ok") == BODY
            assert get(proxy, f"{tls_origin.root}/chunked") == BODY
            assert "403" in reason_of(proxy, "http://127.0.0.2/")
            assert "502" in reason_of(proxy, "https://127.0.0.2/")
            assert "413: too_large" in reason_of(proxy, f"{origin.root}/declared")
        while theirs.stats()["active"]:
            time.sleep(0.01)
        assert theirs.stats()["reasons"]["ok"] == 2


def test_the_environment_leads_urllib_through(
    proxy: GuardProxy, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    for name, value in proxy.environment().items():
        monkeypatch.setenv(name, value)
    before = proxy.stats()["reasons"]["ok"]
    with urllib.request.build_opener().open(f"{origin.root}/ok", timeout=30) as answer:
        assert answer.read() == BODY
    assert proxy.stats()["reasons"]["ok"] == before + 1


def ask_for_ever(proxy: GuardProxy) -> None:
    while True:
        proxy.stats()


def connect_until(address: tuple[str, int], end: float) -> None:
    while time.monotonic() < end:
        socket.create_connection(address).close()
        time.sleep(0.05)


def test_a_forgotten_context_and_a_dead_proxy_are_said() -> None:
    with pytest.raises(DownloadError, match="not running"):
        _ = GuardProxy(ProxyLimits()).url
    with GuardProxy(ProxyLimits()) as proxy:
        assert proxy.process_id is not None
        os.kill(proxy.process_id, signal.SIGKILL)
        with pytest.raises(DownloadError, match="ended by itself"):
            ask_for_ever(proxy)
    assert proxy.process_id is None


PARENT = """
import os, sys, time
from laion_face_builder.proxy.guard_proxy import GuardProxy, ProxyLimits
with GuardProxy(ProxyLimits()) as proxy:
    child = os.fork() if sys.argv[1] == "fork" else 0
    if child or sys.argv[1] != "fork":
        print(proxy.url, child, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["plain", "fork"])
def test_it_ends_with_a_parent_that_is_killed(kind: str) -> None:
    """Even when a forked child of the parent still holds the pipe open."""
    with subprocess.Popen([sys.executable, "-c", PARENT, kind], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url, child = parent.stdout.readline().split()
        address = ("127.0.0.1", urlsplit(url).port)
        socket.create_connection(address).close()
        parent.kill()
        parent.wait()
        try:
            end = time.monotonic() + 20
            with pytest.raises(ConnectionRefusedError):
                connect_until(address, end)
        finally:
            if int(child):
                os.kill(int(child), signal.SIGKILL)


@settings(max_examples=200)
@given(
    head=st.one_of(
        st.binary(max_size=200), st.text(max_size=60).map(lambda text: f"GET http://{text} HTTP/1.1\r\nA: b".encode())
    )
)
def test_any_request_is_parsed_or_refused(head: bytes) -> None:
    try:
        request = parse_request(head + b"\r\nProxy-Authorization: x", "x")
    except (Refusal, PictureError):
        return
    sent = request_head(request)
    assert sent.endswith(b"\r\n\r\n")
    assert sent.count(b"\r\n\r\n") == 1
    assert b"Proxy" not in sent


@settings(max_examples=200)
@given(head=st.binary(max_size=200))
def test_any_answer_is_parsed_or_refused(head: bytes) -> None:
    with suppress(Refusal):
        parse_answer(head, "GET")
        parse_answer(b"HTTP/1.1 200 OK\r\n" + head, "GET")


def test_the_package_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the folder where the user is')")
    monkeypatch.chdir(tmp_path)
    if sys.version_info >= (3, 11):  # before, Python has no safe path
        with GuardProxy(ProxyLimits()) as proxy:
            assert proxy.stats()["active"] == 0
