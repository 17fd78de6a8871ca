"""Answers that hosts give and should not, as a table: the bytes of each. `HostileHost` serves them at /raw/NAME.

A generator that does not end goes on until its client has had enough.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable, Iterable

#: A leaf for 127.0.0.1 with its key, the certificate between, and the root. They protect nothing.
LEAF = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgPZQPO5pbBYUmkbOd
rf8jv5pkR57t2lp8MxubfQC/5O2hRANCAASR7sjjWrO3wboEhe4ZfBmbqOE6K2r3
mDcuPVgFKtG5IvvlJv0JTSIMmmLWwT12nOT+aZ+2dE5/fi10J4o0arUe
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBeDCCAR6gAwIBAgIUII3pn9P/oDk2SIV3X++0/xTZFAswCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHYmV0d2VlbjAgFw0yNjExMjYwMTIxNTJaGA8yMTI2MTEwMjAx
MjE1MlowDzENMAsGA1UEAwwEbGVhZjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BJHuyONas7fBugSF7hl8GZuo4ToraveYNy49WAUq0bki++Um/QlNIgyaYtbBPXac
5P5pn7Z0Tn9+LXQnijRqtR6jUzBRMA8GA1UdEQQIMAaHBH8AAAEwHQYDVR0OBBYE
FDQRLzrrGPikA3a3BWnI0+qkZjzuMB8GA1UdIwQYMBaAFET7zJ0orywyO3bxb5hE
+1SD38/7MAoGCCqGSM49BAMCA0gAMEUCIF6deVqC5tZvVv3atMWXHZC9GyAGSMyN
0lmZidhE30HtAiEAln1urwbtS5ulUq0tCbhPfM2oFTekoFDvIJjxFNCCtEc=
-----END CERTIFICATE-----
"""
BETWEEN = """\
-----BEGIN CERTIFICATE-----
MIIBeDCCAR6gAwIBAgIUO9m4wQUHqrbtLRyI4dVb8yS/U1cwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEcm9vdDAgFw0yNjExMjYwMTIxNTJaGA8yMTI2MTEwMjAxMjE1
MlowEjEQMA4GA1UEAwwHYmV0d2VlbjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BB/gRp3H6f+cDAMLweMXfy7bkrQ9hytAvufnDEA9S7pYLK6AOZzXDKXXbMMKeCk+
nxWw5ZRudJ3PaHa2iAD+PBajUzBRMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYE
FET7zJ0orywyO3bxb5hE+1SD38/7MB8GA1UdIwQYMBaAFL/I+u2M0/iz17PTaAEL
LpHlEkK4MAoGCCqGSM49BAMCA0gAMEUCIQDh83rDiqAQDsGanvujRcw7MF2ZpfWq
pQSm2EESeVcpWQIgQ4tTcRNIr5cJXlhhQVpb6JNtAJgSmolp5DKNoDybkzw=
-----END CERTIFICATE-----
"""
ROOT = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUUJBpk53Du1ndRkTHYR1d4xkShwswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEcm9vdDAgFw0yNjExMjYwMTIxNTFaGA8yMTI2MTEwMjAxMjE1
MVowDzENMAsGA1UEAwwEcm9vdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABGAE
7IEp3xaOvqreBdT2sqMYhP5CrWSoMVDoqzXTQBE+H4vmgHdj7S2DtUHCUf0tzNDj
ok9T4lH4W7t45dh0zoWjUzBRMB0GA1UdDgQWBBS/yPrtjNP4s9ez02gBCy6R5RJC
uDAfBgNVHSMEGDAWgBS/yPrtjNP4s9ez02gBCy6R5RJCuDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDmyL0UNxmcVz08wx1ISQ2BlvXA77iL9Elc
QFr8G3rpZQIgRzliYnJ0yZkZwddkIHzQ+g2Rxq5n64At6oJuhcIy/M0=
-----END CERTIFICATE-----
"""


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> list[bytes]:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", b""]
    return [b"\r\n".join(lines), body]


def to(location: bytes) -> list[bytes]:
    return answer(b"", b"Location: " + location, status=b"302 Found")


def packed(body: bytes, coding: bytes) -> list[bytes]:
    return answer(body, b"Content-Encoding: " + coding)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def in_small_chunks(body: bytes, size: int, headers: bytes = b"") -> list[bytes]:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    start = CHUNKED.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n")
    return [start, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]


def forever(start: bytes, again: bytes) -> Iterable[bytes]:
    return itertools.chain([start], itertools.repeat(again * (1 + 65536 // len(again))))


def ranged(part: bytes, content_range: bytes) -> list[bytes]:
    return answer(part, b"Content-Range: " + content_range, status=b"206 Partial Content")


#: Bring the picture all the same.
GOOD: dict[str, Callable[[bytes], Iterable[bytes]]] = {
    "status-201": lambda picture: answer(picture, status=b"201 Created"),
    "status-203": lambda picture: answer(picture, status=b"203 Non-Authoritative Information"),
    "the-whole-range": lambda picture: ranged(picture, b"bytes 0-%d/%d" % (len(picture) - 1, len(picture))),
    "gzip": lambda picture: packed(gzip.compress(picture), b"gzip"),
    "x-gzip": lambda picture: packed(gzip.compress(picture), b"X-GZip"),
    "gzip-called-deflate": lambda picture: packed(gzip.compress(picture), b"deflate"),
    "gzip-with-more-behind": lambda picture: packed(gzip.compress(picture) + b"more", b"gzip"),
    "deflate": lambda picture: packed(zlib.compress(picture), b"deflate"),
    "raw-deflate": lambda picture: packed(raw_deflate(picture), b"deflate"),
    "gzip-in-small-chunks": lambda picture: in_small_chunks(gzip.compress(picture), 3, b"Content-Encoding: gzip\r\n"),
    "said-to-be-br": lambda picture: packed(picture, b"br"),
    "said-to-be-deflate": lambda picture: packed(picture, b"deflate"),
    "a-coding-that-is-none": lambda picture: packed(picture, b"aws-chunked"),
    "location-latin-1": lambda _: to(b"/ok/caf\xe9.jpg"),
    "location-utf-8": lambda _: to("/ok/café.jpg".encode()),
    "location-blanks": lambda _: to(b"  /ok/a b.jpg\t"),
    "location-relative": lambda _: to(b"../ok/./x.jpg"),
    "location-fragment": lambda _: to(b"/ok#top"),
    "binary-headers": lambda picture: answer(picture, b"X-\xff\xfe: \x80\x81", b"X: " + bytes(range(1, 9))),
    "small-chunks": lambda picture: in_small_chunks(picture, 1),
    "chunk-extensions": lambda picture: [CHUNKED, b"%x;a=b;c\r\n%b\r\n0;x\r\nX: y\r\n\r\n" % (len(picture), picture)],
    "interim-answers": lambda picture: [b"HTTP/1.1 103 Early\r\nLink: <x>\r\n\r\n" * 9, *answer(picture)],
}  # fmt: skip

#: Bring none, and why.
BAD: dict[str, tuple[str, Callable[[bytes], Iterable[bytes]]]] = {
    "a-range": ("http_206", lambda picture: ranged(picture[:100], b"bytes 0-99/%d" % len(picture))),
    "a-later-range": ("http_206", lambda picture: ranged(picture, b"bytes 1-%d/%d" % (len(picture), len(picture) + 1))),
    "a-range-of-nobody-knows": ("http_206", lambda picture: ranged(picture, b"bytes 0-%d/*" % (len(picture) - 1))),
    "status-204": ("http_204", lambda _: [b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "br": ("content_coding", lambda _: packed(b"\x1b\x2f\x00\xf8" * 20, b"br")),
    "zstd": ("content_coding", lambda _: packed(b"\x28\xb5\x2f\xfd" * 20, b"zstd")),
    "gzip-damaged": ("content_coding", lambda picture: packed(gzip.compress(picture)[:60] + bytes(900), b"gzip")),
    "gzip-cut": ("truncated", lambda picture: packed(gzip.compress(picture)[:-20], b"gzip")),
    "gzip-of-nothing": ("empty", lambda _: packed(gzip.compress(b""), b"gzip")),
    "gzip-bomb": ("too_large", lambda _: packed(gzip.compress(bytes(5_000_000)), b"gzip")),
    "deflate-bomb": ("too_large", lambda _: packed(raw_deflate(bytes(5_000_000)), b"deflate")),
    "location-of-no-text": ("bad_redirect", lambda _: to(b"http://\xff\xfe.example/")),
    "location-of-no-name": ("bad_redirect", lambda _: to("http://a.ü..example/".encode())),
    "location-twice": ("bad_response", lambda _: answer(b"", b"Location: /ok", b"Location: /x", status=b"301 Moved")),
    "location-with-controls": ("bad_redirect", lambda _: to(b"/o\x01k")),
    "location-of-a-user": ("bad_redirect", lambda _: to(b"http://user@127.0.0.1/")),
    "a-nul-in-a-header": ("bad_response", lambda picture: answer(picture, b"X: a\0b")),
    "a-nul-in-location": ("bad_response", lambda _: to(b"/ok\0")),
    "a-transfer-coding-of-no-text": (
        "content_coding",
        lambda picture: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: ch\xd4unked\r\n\r\n", picture],
    ),
    "another-protocol": ("bad_response", lambda _: [b"SSH-2.0-OpenSSH_9.6\r\n" * 20]),
    "endless-extension": ("too_large", lambda _: forever(CHUNKED + b"5;", b"x")),
    "endless-extensions": ("bad_response", lambda _: forever(CHUNKED, b"1;" + b"x" * 1000 + b"\r\ny\r\n")),
    "endless-small-chunks": ("bad_response", lambda _: forever(CHUNKED, b"1\r\ny\r\n")),
    "endless-trailers": ("too_large", lambda _: forever(CHUNKED + b"1\r\ny\r\n0\r\n", b"X: " + b"y" * 1000 + b"\r\n")),
    "endless-interim-answers": ("too_large", lambda _: forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "endless-status-line": ("too_large", lambda _: forever(b"HTTP/1.1 200 ", b"x")),
    "endless-header-line": ("too_large", lambda _: forever(b"HTTP/1.1 200 OK\r\nX: ", b"x")),
    "endless-chunk-size": ("bad_response", lambda _: forever(CHUNKED, b"0")),
}  # fmt: skip

TABLE = {**GOOD, **{name: act for name, (_, act) in BAD.items()}}
