"""Read detections in their one published form without the unpickler, fifteen times as fast.

A face of two float32 arrays and a float32 scalar is always the same 200 opcode bytes, but for memo indices and the
three payloads (bytes as UTF-8 text, one or two for each). So a piece is taken apart with NumPy, all faces at once.
Nothing is guessed: every byte of the piece has to be accounted for, in order, by items `key ] put ( face … e`; each
name has to be the memo index under which the unpickler of the first batch has it; each new memo index has to lie above
all of these. If anything is otherwise the piece goes to the unpickler, so the result is the same either way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from laion_face_builder.index.faces import FaceColumns
from laion_face_builder.torch_pickle.pickle_names import ENCODE, NDARRAY, RECONSTRUCT, SCALAR, DType

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


#: BININT1 4, the box's shape, in the first segment and rarely elsewhere.
_BOX = b"K\x04"
_ENDS = re.compile(rb"[ae]u(?:(?:\(u)?\..*)?", re.DOTALL)


def read_faces_of_piece(raw: bytes, memo: dict[int, object]) -> FaceColumns | None:
    """Return the faces in whole batches of the pickled dict, None if they are not all of the known form.

    Args:
        raw: opcodes from the MARK of the first batch to the SETITEMS of the last; then maybe STOP and more.
        memo: what the unpickler of the first batch has in its memo.
    """
    try:
        return _Faces(raw, Template.of(raw, memo)).columns()
    except Otherwise:
        return None


class _Faces:
    """A piece being taken apart."""

    def __init__(self, raw: bytes, template: Template) -> None:
        self._raw = raw
        # Zeros behind the end, so that the longest text or segment can be read from anywhere.
        self._bytes = np.frombuffer(raw + bytes(LONGEST_SEGMENT), np.uint8)
        self._words = np.ndarray((len(raw) + 1,), "<u8", self._bytes, strides=(1,))
        self._segments = [Segment.of(code) for code in template.segments]
        self._box = template.segments[0].index(_BOX)
        self._highest = template.highest

    def columns(self) -> FaceColumns:
        starts = self._starts()
        box, at = self._payload(starts + self._segments[0].size, 4)
        at = self._segment(at, 1)
        landmarks, at = self._payload(at, 10)
        at = self._segment(at, 2)
        score, at = self._payload(at, 1)
        ends = self._segment(at, 3)
        ids, counts = self._items(starts, ends)
        return FaceColumns(ids, counts, box, landmarks.reshape(-1, 5, 2), score.reshape(-1))

    def _starts(self) -> np.ndarray:
        """Find where the first segment stands; there is one for each face."""
        segment = self._segments[0]
        # Two bytes of it, compared in rows, are found several times as fast as all of it by a search.
        is_box = self._bytes[:-1] == _BOX[0]
        is_box &= self._bytes[1:] == _BOX[1]
        at = np.flatnonzero(is_box) - self._box
        at = at[(at >= 0) & (at + segment.size <= len(self._raw))]
        at = at[segment.fits(self._rows(at, segment.words.nbytes), self._highest)]
        if at.size == 0:
            raise Otherwise
        return np.asarray(at)

    def _segment(self, at: np.ndarray, which: int) -> np.ndarray:
        """Return where a segment ends that has to stand at all of `at`, with memo indices above those of the names."""
        segment = self._segments[which]
        end = at + segment.size
        if (end > len(self._raw)).any():
            raise Otherwise
        if not segment.fits(self._rows(at, segment.words.nbytes), self._highest).all():
            raise Otherwise
        return end

    def _rows(self, at: np.ndarray, width: int) -> np.ndarray:
        """Return uint8[m, width], what stands from `at` on; no row may reach behind the end."""
        # As void items, which NumPy copies whole.
        windows = np.ndarray((len(self._raw) + 1,), f"V{width}", self._bytes, strides=(1,))
        return np.asarray(windows[at].view(np.uint8).reshape(-1, width))

    def _payload(self, at: np.ndarray, numbers: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode float32[m, numbers] from texts at `at` (four bytes of length first); return also where they end."""
        if (at + 4 > len(self._raw)).any():
            raise Otherwise
        size = 4 * numbers
        rows = self._rows(at, in_words(4 + 2 * size))
        lengths = uint32(rows, 0).astype(np.int64)
        if ((lengths < size) | (lengths > 2 * size)).any():
            raise Otherwise
        ends = at + 4 + lengths
        if (ends > len(self._raw)).any():
            raise Otherwise
        # The length's own bytes become the columns 252 to 255, behind every text.
        columns = np.arange(-4, rows.shape[1] - 4).astype(np.uint8)
        is_text = columns < lengths.astype(np.uint8)[:, None]
        text = rows[is_text]
        # Each text has to be `size` characters: all bytes but those that continue one.
        rows &= 0xC0
        continues = rows == 0x80
        continues &= is_text
        if (lengths - _row_sums(continues) != size).any():
            raise Otherwise
        try:
            data = text.tobytes().decode().encode("latin1")
        except UnicodeError as error:
            raise Otherwise from error
        return np.frombuffer(data, "<f4").reshape(-1, numbers).astype(np.float32, copy=False), ends

    def _items(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sample ids and their numbers of faces, from what stands between the faces."""
        is_first = np.append(True, starts[1:] != ends[:-1])
        firsts = np.flatnonzero(is_first)
        counts = np.diff(np.append(firsts, len(starts)))
        # Between two items: the end of the list (a or e), maybe the end and the start of a batch (u and MARK).
        ends_of_lists = ends[np.append(firsts[1:], len(starts)) - 1]
        if self._raw[:1] != b"(" or not _ENDS.fullmatch(self._raw, int(ends_of_lists[-1])):
            raise Otherwise
        closing = self._bytes[ends_of_lists]
        at = np.append(1, ends_of_lists[:-1] + 1)
        at = at + 2 * ((self._words[at] & np.uint64(0xFFFF) == np.uint64(0x2875)) & (at > 1))
        ids, at = self._keys(at)
        is_put = self._words[at] & np.uint64(0xFFFF) == np.uint64(0x725D)  # ] r
        index = (self._words[at] >> np.uint64(16)) & np.uint64(0xFFFFFFFF)
        at = at + 6
        is_marked = self._bytes[np.minimum(at, len(self._raw))] == ord("(")
        if not (is_put & (index > np.uint64(self._highest)) & (at + is_marked == starts[firsts])).all():
            raise Otherwise
        if not np.where(is_marked, closing == ord("e"), (closing == ord("a")) & (counts == 1)).all():
            raise Otherwise
        return ids, counts

    def _keys(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the int keys at `at`, int64, and where they end: BININT1, BININT2, BININT, LONG1 up to seven bytes."""
        code = self._bytes[at]
        size = np.select([code == ord("K"), code == ord("M"), code == ord("J")], [1, 2, 4], 0)
        is_long = code == 0x8A
        size = np.where(is_long, self._bytes[np.minimum(at + 1, len(self._raw))], size).astype(np.int64)
        start = at + 1 + is_long
        end = start + size
        if ((size < 1) | (size > 7) | (end + 8 > len(self._raw))).any():
            raise Otherwise
        bits = np.uint64(8) * size.astype(np.uint64)
        values = (self._words[start] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        # BININT and LONG1 have a sign: a negative key is for the unpickler, which makes the error.
        signed = is_long | (code == ord("J"))
        if (signed & (values >> (8 * size - 1) > 0)).any() or (values >= 1 << 53).any():
            raise Otherwise
        return values, end


def _row_sums(flags: np.ndarray) -> np.ndarray:
    """Count, int64[m], how many of bool[m, 8 * w] are set in each row; fewer than 256."""
    # Eight counts in each word, added up by a multiplication into the highest byte.
    sums = np.add.reduce(flags.view("<u8"), axis=1)
    sums *= np.uint64(0x0101010101010101)
    return np.asarray(sums >> np.uint64(56), np.int64)
