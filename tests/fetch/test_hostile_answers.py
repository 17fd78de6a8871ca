"""Whatever a host answers ends in a picture or a reason, within bounds of bytes as well as of time."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import curl
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.http import Body
from laion_face_builder.fetch.limits import FetchLimits
from tests.support.hostile_answers import BAD, BETWEEN, GOOD, LEAF, ROOT, raw_deflate
from tests.support.hostile_host import HostileHost
from tests.support.nested import but

LIMITS = but(
    FetchLimits(),
    timeout=30.0,
    retries=0,
    max_bytes=2_000_000,
    max_pixels=1_000_000,
    also_public=("127.0.0.0/8",),
)


@pytest.fixture(scope="module")
def host() -> Iterator[HostileHost]:
    with HostileHost() as found:
        yield found


@pytest.fixture(scope="module")
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(LIMITS) as found:
        yield found


def reason(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(PictureError) as caught:
        fetcher.submit(url).result(60)
    return caught.value.reason


@pytest.mark.parametrize("name", GOOD)
def test_odd_answers_that_bring_the_picture(host: HostileHost, fetcher: Fetcher, name: str) -> None:
    assert fetcher.submit(host.url(f"/raw/{name}")).result(60).data == host.picture


@pytest.mark.parametrize("name", BAD)
def test_answers_that_bring_none(host: HostileHost, fetcher: Fetcher, name: str) -> None:
    assert reason(fetcher, host.url(f"/raw/{name}")) == BAD[name][0]


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        (" /ok/a b.jpg \n", "/ok/a%20b.jpg"),
        ("/ok/\tä.jpg#x", "/ok/%C3%A4.jpg"),
        ("/ok\\{1}|2^\"<'>`.jpg", "/ok/%7B1%7D|2%5E%22%3C'%3E%60.jpg"),
        ("/ok/100%25%zz.jpg", "/ok/100%25%zz.jpg"),
        ("/ok/caf%E9.jpg", "/ok/caf%E9.jpg"),
    ],
)
def test_addresses_are_asked_for_as_browsers_do(host: HostileHost, fetcher: Fetcher, written: str, asked: str) -> None:
    before = host.asked[asked]
    assert fetcher.submit(f"  {host.url('')}{written.lstrip()}").result(60).data == host.picture
    assert host.asked[asked] == before + 1


def test_where_odd_locations_lead(host: HostileHost, fetcher: Fetcher) -> None:
    for name in ("location-latin-1", "location-utf-8", "location-blanks"):
        fetcher.submit(host.url(f"/raw/{name}")).result(60)
    assert {"/ok/caf%E9.jpg", "/ok/caf%C3%A9.jpg", "/ok/a%20b.jpg"} <= set(host.asked)


def test_a_name_that_no_library_can_encode_is_a_bad_address(fetcher: Fetcher) -> None:
    for name in ("ü" * 70, "a..ü", "\ud800ü", "ü\x00", "%ff", "a%00b", "ü/@"):
        assert reason(fetcher, f"http://{name}.example/") in ("bad_url", "dns")
    assert reason(fetcher, f"http://{'ü' * 70}.example/") == "bad_url"
    assert reason(fetcher, "http://127.0.0.1/\ud800") == "bad_url"


class Counting:
    """A host that says how many bytes it got rid of, and then waits until its client hangs up."""

    def __init__(self, start: bytes, again: bytes) -> None:
        self.sent = 0
        self._start, self._again = start, again * (1 + 65536 // len(again))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            connection.recv(65536)
            try:
                connection.sendall(self._start)
                while True:
                    self.sent += connection.send(self._again)
            except OSError:
                return


@pytest.mark.parametrize("again", [b"x", b"x" * 70_000], ids=["short", "long"])
def test_what_wraps_a_body_counts_too(fetcher: Fetcher, again: bytes) -> None:
    # 6.4 GB of one chunk's extension once came in 6 s: libcurl hands over nothing of it.
    host = Counting(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", again)
    assert reason(fetcher, host.url) == "too_large"
    # Looked at now and then only, so some more has come; and some was sent that nobody read.
    assert host.sent < LIMITS.max_wire_bytes + 100_000_000


def test_a_connection_that_is_kept_is_counted_anew_for_each_picture(host: HostileHost) -> None:
    limits = but(LIMITS, max_bytes=100_000, per_host=1)
    with Fetcher(limits) as fetcher:
        for _ in range(40):
            assert fetcher.submit(host.url("/sized?bytes=99000")).result(60)
    assert limits.max_wire_bytes < 40 * 99_000
    assert host.most_at_once <= 2


@given(st.binary(max_size=3000), st.integers(1, 400), st.sampled_from(["gzip", "deflate", "raw"]), st.integers(1, 5))
def test_a_body_is_unpacked_the_same_however_it_is_cut(data: bytes, size: int, coding: str, room: int) -> None:
    # Also whenever there is no room: `drain` is asked again, and what was counted is what came out.
    import gzip

    data *= 500
    pack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": raw_deflate}
    packed, kept = pack[coding](data), []

    def grow(count: int) -> bool:
        kept.append(count)
        return len(kept) % room == 0

    body = Body(10_000_000, grow)
    body.begin([b"Content-Encoding: " + (b"gzip" if coding == "gzip" else b"deflate") + b"\r\n"])
    for at in range(0, len(packed), size):
        is_free = body.take(packed[at : at + size])
        while not is_free:
            is_free = body.drain()
    assert not body.is_behind
    assert body.finish() == data
    assert sum(kept) == len(data)
    assert max(kept, default=0) <= 1 << 18


def test_a_fault_of_ours_is_one_pictures_failure(
    host: HostileHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Body):
        def take(self, piece: bytes) -> bool:
            raise ZeroDivisionError("a fault")

    monkeypatch.setattr(curl, "Body", Faulty)
    with Fetcher(LIMITS) as fetcher, caplog.at_level(logging.ERROR, "laion_face"):
        assert [reason(fetcher, host.url("/ok")) for _ in range(3)] == ["internal"] * 3
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


class Random:
    """A host that answers each connection with the bytes that are next."""

    def __init__(self) -> None:
        self.next = b""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self.next)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def random_host() -> Iterator[Random]:
    found = Random()
    yield found
    found.close()


NAMES = [b"Location", b"Content-Encoding", b"X-Robots-Tag", b"Content-Range", b"Retry-After", b"Content-Length", b"X"]
VALUES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"gzip", b"deflate", b"br", b"chunked", b"0", b"9", b"-1", b"99999999999999999999"]),
    st.sampled_from([b"bytes 0-9/10", b"http://", b"//\xff", b"http://[", b"unavailable_after:", b"a:b:c"]),
    st.builds(lambda text: text.encode("utf-8", "surrogatepass"), st.text(max_size=20)),
)
STATUS = st.one_of(
    st.binary(max_size=20),
    st.builds(lambda code: b"HTTP/1.1 %d x" % code, st.sampled_from([100, 200, 203, 204, 206, 301, 304, 410, 999])),
)
HEADERS = st.lists(st.builds(lambda name, value: name + b": " + value, st.sampled_from(NAMES), VALUES), max_size=5)


@settings(max_examples=100)
@given(status=STATUS, headers=HEADERS, body=st.binary(max_size=60))
def test_no_bytes_end_more_than_their_own_picture(
    random_host: Random, quick: Fetcher, status: bytes, headers: list[bytes], body: bytes
) -> None:
    random_host.next = b"\r\n".join([status, *headers, b"Connection: close", b"", body])
    assert reason(quick, f"{random_host.url}/x") != "internal"


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=30), st.builds("http://{}".format, st.text(max_size=30))))
def test_no_address_ends_more_than_its_own_picture(nowhere: Fetcher, url: str) -> None:
    assert reason(nowhere, url) in ("bad_url", "private_address", "dns")


@pytest.fixture(scope="module")
def quick() -> Iterator[Fetcher]:
    with Fetcher(but(LIMITS, timeout=1.0, redirects=1)) as found:
        yield found


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Fetcher]:
    """Give a fetcher whose network has no public host: what gets through the reading of addresses fails at once."""
    with Fetcher(but(LIMITS, timeout=30.0, also_public=())) as found:
        yield found


class Secure:
    """An https host that breaks off some handshakes before it keeps one.

    Args:
        chain: its certificates, with the key.
        breaks: connections that it resets.
    """

    def __init__(self, tmp_path: Path, chain: str, breaks: int) -> None:
        (tmp_path / "chain.pem").write_text(chain)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tmp_path / "chain.pem")
        self.breaks, self.asked = breaks, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/"

    def serve(self, picture: bytes) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.asked += 1
            try:
                with connection:
                    self._answer(connection, picture)
            except OSError:
                continue

    def _answer(self, connection: socket.socket, picture: bytes) -> None:
        if self.asked <= self.breaks:
            connection.recv(64)  # the rest of what came is unread, so that closing resets the connection
            return
        with self._context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(65536)
            wrapped.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(picture), picture))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize(
    ("chain", "breaks", "outcome", "asked"),
    [
        (LEAF + BETWEEN, 0, "ok", 1),
        (LEAF + BETWEEN, 1, "ok", 2),
        (LEAF + BETWEEN, 9, "reset", 3),
        (LEAF, 0, "tls_incomplete_chain", 1),
    ],
    ids=["whole", "reset-once", "reset-always", "intermediate-missing"],
)
def test_tls_that_breaks_off_is_tried_again_and_bad_papers_are_not(
    tmp_path: Path, host: HostileHost, chain: str, breaks: int, outcome: str, asked: int
) -> None:
    (tmp_path / "root.pem").write_text(ROOT)
    secure = Secure(tmp_path, chain, breaks)
    thread = threading.Thread(target=secure.serve, args=(host.picture,), daemon=True)
    thread.start()
    with Fetcher(but(LIMITS, retries=2, ca_file=str(tmp_path / "root.pem"))) as fetcher:
        try:
            fetcher.submit(secure.url).result(60)
            found = "ok"
        except PictureError as error:
            found = error.reason
    secure.close()
    assert (found, secure.asked) == (outcome, asked)
