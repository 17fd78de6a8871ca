"""HTTP answers: the body with its status and headers; whether it is the whole one, and how long we are to wait."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_WHOLE_RANGE = re.compile(r"bytes\s+0-(\d{1,18})/(\d{1,18})\s*")


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, its body read whole.

    Attributes:
        status: the status code.
        headers: their lines as they came, without the status line.
        body: unpacked.
    """

    status: int
    headers: list[bytes]
    body: bytes

    def raw(self, name: bytes) -> Iterator[bytes]:
        """Return the values of every header called `name` (lower case), as they came."""
        return header_values(self.headers, name)

    def values(self, name: bytes) -> Iterator[str]:
        """Return the values of every header called `name` (lower case), as text."""
        return (value.decode("latin-1") for value in self.raw(name))

    @property
    def is_success(self) -> bool:
        """Whether the body is what was asked for: any 2xx, but of parts (206) only one that is the whole picture."""
        return 200 <= self.status < 300 and (self.status != 206 or self._is_whole())

    def _is_whole(self) -> bool:
        ranges = [_WHOLE_RANGE.fullmatch(value.lower()) for value in self.values(b"content-range")]
        return bool(ranges) and all(found is not None and int(found[1]) + 1 == int(found[2]) for found in ranges)


def header_values(lines: Iterable[bytes], name: bytes) -> Iterator[bytes]:
    """Yield the values of every header called `name` (lower case) among these lines."""
    for line in lines:
        if line[: len(name)].lower() == name and line[len(name) : len(name) + 1] == b":":
            yield line[len(name) + 1 :].strip()


def asked_wait(values: Iterable[str]) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 without a sensible one."""
    for value in values:
        if value.isdecimal():
            return float(value)
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            continue
    return 0.0
