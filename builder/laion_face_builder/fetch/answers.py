"""What a host's answer says beside its picture: opt-out, wait a while, look elsewhere, packed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from laion_face_builder.errors import PictureError

#: Honoured by default, as img2dataset does.
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
#: Directives that carry a value of their own behind a colon: no names of robots.
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, its body read whole.

    Attributes:
        status: the code.
        headers: its lines as they came, without the status line.
        body: as it came.
        redirect: where its Location leads, absolute; "" if nowhere.
    """

    status: int
    headers: list[bytes]
    body: bytes
    redirect: str = ""

    def values(self, name: bytes) -> Iterator[str]:
        """The values of every header called `name` (lower case)."""
        for line in self.headers:
            if line[: len(name)].lower() == name and line[len(name) : len(name) + 1] == b":":
                yield line[len(name) + 1 :].decode("latin-1").strip()


def opts_out(values: Iterable[str], token: str) -> bool:
    """Whether X-Robots-Tag headers ask `token` to leave the picture alone.

    Each header is a comma list. "otherbot: noindex" speaks to otherbot alone, and so do the directives behind it in
    the same header, until another name. Letter case and blanks do not matter.
    """
    ours = token.lower()
    for value in values:
        meant = True
        for directive in value.lower().split(","):
            head, colon, rest = directive.partition(":")
            if colon and head.strip() not in _WITH_VALUE:
                meant, head = head.strip() == ours, rest
            if meant and head.strip() in OPT_OUT:
                return True
    return False


def asked_wait(values: Iterable[str]) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 without a sensible one."""
    for value in values:
        if value.isdecimal():
            return float(value)
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            continue
    return 0.0


def unpacked(answer: Answer, max_bytes: int) -> bytes:
    """The body without gzip or deflate, which some hosts send unasked. Other codings are left to the picture check.

    Raises:
        PictureError: "too_large", "truncated".
    """
    codings = [value.strip().lower() for header in answer.values(b"content-encoding") for value in header.split(",")]
    if not any(coding in ("gzip", "x-gzip", "deflate") for coding in codings):
        return answer.body
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        body = unpacker.decompress(answer.body, max_bytes + 1)
    except zlib.error:
        return answer.body  # said to be packed, and is not
    if len(body) > max_bytes:
        raise PictureError("too_large", f"more than {max_bytes} bytes unpacked")
    if not unpacker.eof:
        raise PictureError("truncated", "the packed body ends early")
    return body
