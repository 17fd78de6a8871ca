"""Read a pickled dict in pieces: a full part's detections need 7 GB as one object, and well under one in pieces.

Python's pickler writes a dict in batches of 1,000 items: `(` key value key value … `u`. The bytes of some whole batches
form a pickle of their own behind an EMPTY_DICT, if the memo is carried over, in which the names are that all values
share. Where a batch ends can only be guessed from the bytes (`u`, `(`, a number, the start of a value), so each guess
is checked: cut short anywhere else, a piece runs out of bytes, or does not leave exactly its dict on the stack.
"""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from laion_face_builder.errors import BadFile, LaionFaceError
from laion_face_builder.log import logger
from laion_face_builder.torch_pickle.pickle_scan import Scan
from laion_face_builder.torch_pickle.torch_file import PickleStream, load_pickle, open_pickle
from laion_face_builder.torch_pickle.unpickler import NoStorages, Unpickler, bad_pickle, collector_off, one_door

#: Bytes of a piece. Each new unpickler pays for the highest memo index so far, so small pieces are slow.
PIECE_SIZE = 64 << 20
#: Bytes of a piece for a shortcut: what it works on then stays in the processor's cache.
SHORTCUT_SIZE = 2 << 20
_READ = 1 << 20
#: Bytes in which the end of a batch has to be met; a real one has half a megabyte.
_MOST = 256 << 20
#: Guesses that may fail in a row before the file is taken for one that cannot be cut.
_GUESSES = 8
#: PROTO 2, EMPTY_DICT, BINPUT 0, MARK.
_HEAD = b"\x80\x02}q\x00("
_LONG = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(1, 9))
#: An int or float opcode with its argument.
_NUMBER = b"(?:K.|M..|J.{4}|G.{8}|\\x8a(?:" + _LONG + b"))"
#: SETITEMS, MARK, a key, and the first opcode of a value.
_CUT = re.compile(b"u(?=\\(" + _NUMBER + b"[\\]})(hjc])", re.DOTALL)
_LOOK_AHEAD = 16


#: What a shortcut is given: a piece's opcodes from its first MARK on, and the memo of the first piece. It gives what
#: the piece holds in a form of its own, or None where it does not know how.
T = TypeVar("T")
Shortcut = Callable[[bytes, dict[int, object]], "T | None"]


class _CannotCut(Exception):
    """The stream refers back over a cut, or is not what it seemed."""


def iter_dict(path: Path, piece_size: int = PIECE_SIZE) -> Iterator[dict[object, object]]:
    """Yield the dict in a file of torch.save, piece by piece, in the file's order.

    A key can come in several pieces; as in a dict, the last one counts. A small file, and one that cannot be cut, comes
    whole (the latter with a warning: it needs about eight times its size in memory).

    Raises:
        UnsafePickle, BadFile: as `load_pickle`; or the file does not hold a dict.
    """
    return iter_pieces(path, lambda raw, memo: None, piece_size)


def iter_pieces(path: Path, shortcut: Shortcut[T], piece_size: int = PIECE_SIZE) -> Iterator[T | dict[object, object]]:
    """Do as `iter_dict`, but offer smaller pieces to `shortcut` first; if it knows one, yield what it returns."""
    with one_door(path), open_pickle(path) as stream:
        if stream.size > piece_size:
            try:
                yield from _Cutter(stream, shortcut, piece_size).pieces()
                return
            except _CannotCut as reason:
                logger.warning("%s cannot be read in pieces (%s): loading it whole, in 8 times its size", path, reason)
    yield _whole(path)


def _whole(path: Path) -> dict[object, object]:
    value = load_pickle(path)
    if isinstance(value, dict):
        return value
    raise BadFile(
        path,
        found=f"a {type(value).__name__}",
        expected="a dict of sample ids and faces",
        way_out="Check that it is a sample2detect_N.pth file.",
    )


class _Cutter:
    """Cuts the pickle of one open file."""

    def __init__(self, stream: PickleStream, shortcut: Shortcut[Any], piece_size: int) -> None:
        self._stream = stream
        self._shortcut = shortcut
        self._piece_size = piece_size
        self._shortcut_size = min(piece_size, SHORTCUT_SIZE)
        self._pending = b""
        self._first: Unpickler | None = None
        self._noted: Mapping[int, object] = {}

    def pieces(self) -> Iterator[Any]:
        """Yield what the pieces hold. The first is a single batch: all later unpicklers start with its memo."""
        if self._stream.file.read(len(_HEAD)) != _HEAD:
            raise _CannotCut("it does not start with a dict of several items")
        self._pending = _HEAD[-1:]
        items: Any
        items, is_last = self._load(1)
        yield items
        memo: Any = self._first.memo.copy() if self._first else {}
        while not is_last:
            raw, is_last = self._take(self._shortcut_size)
            items = self._shortcut(raw, memo)
            if items is None:
                self._pending = raw + self._pending
                del raw
                items, is_last = self._load(self._piece_size)
            yield items

    def _take(self, at_least: int) -> tuple[bytes, bool]:
        """Take the next piece of so many bytes or more, to where a batch seems to end; tell whether it is the last."""
        start = at_least - 1
        while not (cut := _CUT.search(self._pending, start)):
            start = max(start, len(self._pending) - _LOOK_AHEAD)
            if len(self._pending) > at_least + _MOST:
                raise _CannotCut("no batch of items ends where one should")
            if not (more := self._stream.file.read(_READ)):
                raw, self._pending = self._pending, b""
                return raw, True
            self._pending += more
        raw, self._pending = self._pending[: cut.end()], self._pending[cut.end() :]
        return raw, False

    def _load(self, at_least: int) -> tuple[dict[object, object], bool]:
        """Unpickle the next piece. A wrong guess of its end is mended with the next one."""
        for _ in range(_GUESSES):
            raw, is_last = self._take(at_least)
            items = self._unpickle(raw, is_last)
            if items is not None:
                return items, is_last
            self._pending = raw + self._pending
            at_least = len(raw) + 1
        raise _CannotCut("no batch of items ends where one seems to")

    def _unpickle(self, raw: bytes, is_last: bool) -> dict[object, object] | None:
        # (token, {items}) as a tuple: nothing but the true end of a batch leaves just these two behind the lowest MARK.
        token = secrets.randbits(63)
        mark = b"" if is_last else b"(\x8a\x08" + token.to_bytes(8, "little")
        data = b"".join((b"\x80\x02", mark, b"}", b"" if self._first else b"q\x00", raw, b"" if is_last else b"t."))
        # Legacy files have the numbers of tensors behind the pickle: too late for pieces.
        storages = _TooLate() if self._stream.has_late_numbers else self._stream.storages
        scan = Scan(len(data), self._stream.size, self._noted)
        unpickler = Unpickler(io.BytesIO(data), self._stream.path, storages, scan, len(data))
        if self._first:
            unpickler.memo = self._first.memo
        value = self._run(unpickler, is_last)
        if is_last and type(value) is not dict:
            raise _CannotCut(f"it is a {type(value).__name__}")
        if not is_last and type(value) is tuple and len(value) == 2 and value[0] == token:
            value = value[1]
        if type(value) is not dict:
            return None
        if self._first is None:
            self._first, self._noted = unpickler, scan.memo
        return value

    def _run(self, unpickler: Unpickler, is_last: bool) -> object:
        try:
            with collector_off():
                return unpickler.load()
        except (LaionFaceError, _CannotCut):
            raise
        except Exception as error:  # bytes that were cut wrongly make the unpickler raise nearly anything
            if "Memo value" in str(error):
                raise _CannotCut("values refer to earlier ones") from error
            if is_last:
                raise bad_pickle(self._stream.path, error) from error
            return None


class _TooLate(NoStorages):
    def get(self, key: str, dtype: object, count: int) -> Any:
        raise _CannotCut("its tensors have their numbers at the end")
