"""Read detections in their one published form without the unpickler, fifteen times as fast.

A face of two float32 arrays and a float32 scalar is always the same 200 opcode bytes, but for memo indices and the
three payloads (bytes as UTF-8 text, one or two for each). So a piece is taken apart with NumPy, all faces at once.
Nothing is guessed: every byte of the piece has to be accounted for, in order, by items `key ] put ( face … e`; each
name has to be the memo index under which the unpickler of the first batch has it; each new memo index has to lie above
all of these. If anything is otherwise the piece goes to the unpickler, so the result is the same either way.
"""

from __future__ import annotations

import re

import numpy as np

from laion_face_builder.index.face_columns import FaceColumns
from laion_face_builder.index.face_template import LONGEST_SEGMENT, Otherwise, Segment, Template, in_words, uint32

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
