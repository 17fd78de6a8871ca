"""Leave long lists of floats in their pickle until they are asked for: 49 M ids are 2 GB as Python floats.

A list of floats is `]`, a memo index, then batches: `(`, up to 1,000 times `G` and eight bytes, `e`. Such a list is
taken out of the opcodes and a reference to its place put there; everything around it goes through the customs desk as
always. A list is read opcode by opcode from its start, so nothing is guessed; where it goes on in any other way,
the opcodes stay as they were.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from laion_face_builder.errors import BadFile, UnsafePickle
from laion_face_builder.torch_pickle.pickle_names import FROZENSET, SET, Stamp
from laion_face_builder.torch_pickle.pickle_scan import Scan
from laion_face_builder.torch_pickle.pickle_sizes import Malformed
from laion_face_builder.torch_pickle.torch_file import PickleStream, load_pickle, open_pickle
from laion_face_builder.torch_pickle.unpickler import Unpickler, bad_pickle, one_door, run

#: Shorter lists stay as they are.
_WORTH_IT = 100
_LIST = re.compile(rb"\]((?:q.|r.{4}))(?=\((?:G.{8}){%d})" % _WORTH_IT, re.DOTALL)
#: At least the bytes in which _LIST is found.
_LOOK_AHEAD = 1024
_ITEM = np.dtype([("op", "u1"), ("value", ">f8")])
_BATCH = np.dtype([("mark", "u1"), ("items", _ITEM, 1000), ("end", "u1")])
#: Batches that are looked at together, 576 kB.
_BATCHES = 64
_READ = 1 << 20
_MOST_LISTS = 1 << 16


@dataclass(frozen=True)
class FloatList:
    """A list of floats that is still in its file.

    Attributes:
        path: the file, not to be changed meanwhile.
        start: where its first batch stands.
        count: how many floats it has.
    """

    path: Path
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[float]:
        return iter(self.read().tolist())

    def read(self) -> np.ndarray:
        """Read the floats: float64[count].

        Raises:
            BadFile: the file has changed.
        """
        numbers, filled = np.empty(self.count), 0
        with self.path.open("rb", buffering=0) as file:
            for floats in _floats(file, self.start, _end(self.start, self.count)):
                numbers[filled : filled + floats.size].reshape(floats.shape)[:] = floats
                filled += floats.size
        if filled != self.count:
            raise bad_pickle(self.path, Malformed("a list that has changed while it was read"))
        return numbers


def load_lists(path: Path) -> object:
    """Do as `torch_file.load_pickle`, but give long lists of floats as `FloatList`."""
    with one_door(path), open_pickle(path) as stream, path.open("rb", buffering=0) as raw:
        opcodes, lists = take_out(raw, path, stream.start, stream.start + stream.size)
        file = io.BytesIO(opcodes)
        try:
            value = run(_Unpickler(file, path, stream, lists, len(opcodes)), path)
            stream.finish(file if stream.has_late_numbers else stream.file)
            return value
        except UnsafePickle:
            raise
        except BadFile:
            if not lists:
                raise
    # The pickle does more with a list, such as appending to it: load Python floats instead. Or it is broken indeed.
    return load_pickle(path)


def take_out(file: IO[bytes], path: Path, start: int, end: int) -> tuple[bytes, list[FloatList]]:
    """Return a file's opcodes from `start` to `end`, with references in place of long float lists, and these lists."""
    kept: list[bytes] = []
    lists: list[FloatList] = []
    data, place, position = b"", start, 0  # data[0] is at `place`, and `position` in it is what is next
    in_vain = 0
    while True:
        # In a hostile file each batch of a list may look like the start of one that is none after all.
        found = _LIST.search(data, position) if len(lists) < _MOST_LISTS and in_vain <= end - start else None
        if found:
            batches = place + found.end()
            count = sum(floats.size for floats in _floats(file, batches, end))
            after = _end(batches, count)
            if count < _WORTH_IT or _bytes(file, after, 1) in b"(Ga":
                # Cut short, or more may be appended to it.
                in_vain += after - batches
                kept.append(data[position : found.end()])
                position = found.end()
                continue
            # BININT2 index, BINPERSID, then the list's own memo index.
            kept += (data[position : found.start()], b"M" + len(lists).to_bytes(2, "little") + b"Q" + found[1])
            lists.append(FloatList(path, batches, count))
            position = after - place
        elif place + len(data) < end:
            cut = max(position, len(data) - _LOOK_AHEAD)
            kept.append(data[position:cut])
            place += cut
            data, position = _bytes(file, place, min(_READ, end - place)), 0
            if not data:
                raise bad_pickle(path, EOFError("truncated while it was read"))
        else:
            return b"".join((*kept, data[position:])), lists


def _floats(file: IO[bytes], start: int, end: int) -> Iterator[np.ndarray]:
    """Yield the floats of the batches from `start` on, in big-endian arrays, up to what is no whole batch."""
    batches = 1
    while data := _bytes(file, start, min(batches * _BATCH.itemsize, end - start)):
        full = _full_batches(data)
        yield full["items"]["value"]
        if len(full) < batches:
            yield _last_batch(data[len(full) * _BATCH.itemsize :])
            return
        start += len(data)
        batches = min(2 * batches, _BATCHES)


def _full_batches(data: bytes) -> np.ndarray:
    batches = np.frombuffer(data, _BATCH, len(data) // _BATCH.itemsize)
    whole = (batches["mark"] == ord("(")) & (batches["end"] == ord("e"))
    whole &= (batches["items"]["op"] == ord("G")).all(axis=1)
    return batches if whole.all() else batches[: whole.argmin()]


def _last_batch(data: bytes) -> np.ndarray:
    """Return the floats of the batch that `data` starts with, if that is one of less than 1,000."""
    items = np.frombuffer(data, _ITEM, min(1000, max(0, len(data) - 1) // _ITEM.itemsize), min(1, len(data)))
    others = np.flatnonzero(items["op"] != ord("G"))
    items = items[: others[0]] if len(others) else items
    is_batch = len(items) and data[:1] == b"(" and data[1 + items.nbytes :][:1] == b"e"
    return np.asarray(items["value"] if is_batch else items["value"][:0])


def _end(start: int, count: int) -> int:
    """Return where so many floats end: nine bytes each, and two for each batch."""
    return start + _ITEM.itemsize * count + 2 * -(-count // 1000)


def _bytes(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


class _Unpickler(Unpickler):
    def __init__(self, file: IO[bytes], path: Path, stream: PickleStream, lists: list[FloatList], size: int) -> None:
        super().__init__(file, path, stream.storages, Scan(size, stream.size), size)
        self._lists = lists

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _LEFT_IN_FILE.get(id(found), found)

    def persistent_load(self, pid: Any) -> Any:
        return self._lists[pid] if type(pid) is int else super().persistent_load(pid)


def _or_left(make: Stamp) -> Stamp:
    """Leave a set in its file as well: as Python floats it takes ten times the room."""
    return Stamp(lambda items=(): items if type(items) is FloatList else make(items))


_LEFT_IN_FILE = {id(make): _or_left(make) for make in (SET, FROZENSET)}
