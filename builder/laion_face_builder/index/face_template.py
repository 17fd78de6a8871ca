"""Describe the pickle of a face: the bytes that are the same in each, and where they differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from laion_face_builder.upstream.customs import ENCODE, NDARRAY, RECONSTRUCT, SCALAR, DType

#: Stands in a template for `r` and a memo index of four bytes.
_PUT = b"r\0\0\0\0"
_GET = rb"(h.|j.{4})"
#: The longest segment, with five bytes for each name.
LONGEST_SEGMENT = 96


class Otherwise(Exception):
    """The piece is not of the form that the templates describe."""


@dataclass(frozen=True)
class Template:
    """What stands before, between and behind the three payloads of a face.

    Attributes:
        segments: those bytes, with `r` and four zeros where a memo index is put.
        highest: the highest memo index that they name.
    """

    segments: tuple[bytes, bytes, bytes, bytes]
    highest: int

    @classmethod
    def of(cls, raw: bytes, memo: dict[int, object]) -> Template:
        """Make it from the names in the memo; which of the equal dtypes is meant is taken from the first face.

        Raises:
            Otherwise: the memo has not all names, or there is no such face.
        """
        names = {name: _index(memo, wanted) for name, wanted in _NAMES.items()}
        get = {name: _get(index) for name, index in names.items()}
        start = get["reconstruct"] + get["ndarray"] + b"K\0\x85" + _PUT + get["b"]
        start += b"\x87" + _PUT + b"R" + _PUT + b"(K\x01"
        text = b"\x89" + get["encode"] + b"X"
        after = get["latin1"] + b"\x86" + _PUT + b"R" + _PUT
        parts = [
            [start + b"K\x04\x85" + _PUT, text],
            [_PUT + after + b"t" + _PUT + b"b" + start + b"K\x05K\x02\x86" + _PUT, text],
            [_PUT + after + b"t" + _PUT + b"b" + get["scalar"], text[1:]],
        ]
        payload = b".{8,84}?"
        found = re.search(payload.join(_pattern(a) + _GET + _pattern(b) for a, b in parts), raw, re.DOTALL)
        if not found:
            raise Otherwise
        dtypes = [_got(code) for code in found.groups()]
        if not all(_is_float32(memo.get(index)) for index in dtypes):
            raise Otherwise
        first, second, third = (a + code + b for (a, b), code in zip(parts, found.groups(), strict=True))
        last = _PUT + after + b"\x86" + _PUT + b"R" + _PUT + b"\x87" + _PUT
        return cls((first, second, third, last), max(*names.values(), *dtypes))


_NAMES = {
    "reconstruct": RECONSTRUCT,
    "ndarray": NDARRAY,
    "encode": ENCODE,
    "scalar": SCALAR,
    "b": b"b",
    "latin1": "latin1",
}


def _index(memo: dict[int, object], wanted: object) -> int:
    for index, value in memo.items():
        if value is wanted or (type(value) is type(wanted) and isinstance(value, bytes | str) and value == wanted):
            return index
    raise Otherwise


def _is_float32(value: object) -> bool:
    return type(value) is DType and value.numpy == np.dtype("<f4")


def _get(index: int) -> bytes:
    return b"h" + bytes([index]) if index < 256 else b"j" + index.to_bytes(4, "little")


def _got(code: bytes) -> int:
    return int.from_bytes(code[1:], "little")


def _pattern(segment: bytes) -> bytes:
    return b"r.{4}".join(re.escape(run) for run in segment.split(_PUT))


@dataclass(frozen=True)
class Segment:
    """A template as words of eight bytes, to be laid over all faces at once.

    Attributes:
        size: how many bytes it has.
        words, mask: uint64[w], its bytes, and which of them are fixed: not memo indices, nor what fills the last word.
        indices: where it has memo indices, four bytes each.
    """

    size: int
    words: np.ndarray
    mask: np.ndarray
    indices: tuple[int, ...]

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, code: bytes) -> Segment:
        """Make a segment from bytes with _PUT at the places of memo indices."""
        width = in_words(len(code))
        mask = np.zeros(width, np.uint8)
        mask[: len(code)] = 0xFF
        # The `r` of a put is fixed.
        indices = tuple(found.start() + 1 for found in re.finditer(_PUT, code))
        for index in indices:
            mask[index : index + 4] = 0
        words = np.frombuffer(code.ljust(width, b"\0"), "<u8")
        return cls(len(code), words, mask.view("<u8"), indices)

    def fits(self, rows: np.ndarray, highest: int) -> np.ndarray:
        """Tell, bool[m], which of uint8[m, 8 * w] are this segment, with memo indices above `highest`."""
        different = rows.view("<u8") ^ self.words
        different &= self.mask
        fit = np.asarray(np.bitwise_or.reduce(different, axis=1) == 0)
        for index in self.indices:
            fit &= uint32(rows, index) > np.uint32(highest)
        return fit


def in_words(size: int) -> int:
    """Round `size` bytes up to words of eight."""
    return -(-size // 8) * 8


def uint32(rows: np.ndarray, column: int) -> np.ndarray:
    """Read uint32[m], the four bytes from a column on."""
    return np.ndarray((len(rows),), "<u4", rows, column, (rows.shape[1],)) if len(rows) else np.empty(0, np.uint32)
