"""Long lists of floats in a pickle, read as arrays: 49 M ids are 400 MB instead of 2 GB, in a fraction of the time.

A list of floats is `]`, a memo index, then batches: `(`, up to 1,000 times `G` and eight bytes, `e`. Such a list is
taken out of the opcodes and a reference to an array put in its place; everything around it goes through the customs
desk as always. Read opcode by opcode from the list's start, so nothing is guessed; where it goes on in any other way,
the stream is left as it was.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from laion_face_builder.upstream.customs import Storages, Unpickler, run
from laion_face_builder.upstream.pickles import open_pickle

_LIST = re.compile(rb"\]((?:q.|r.{4}))(?=\(G)", re.DOTALL)
_ITEM = np.dtype([("op", "S1"), ("value", ">f8")])
_BATCH = np.dtype([("mark", "S1"), ("items", _ITEM, 1000), ("end", "S1")])
#: Batches that are looked at together, 576 kB.
_BATCHES = 64
#: Shorter lists stay as they are.
_WORTH_IT = 100
_MOST_LISTS = 1 << 16


def load_lists(path: Path) -> object:
    """As `pickles.load_pickle`, but long lists of floats come as float64 arrays."""
    with open_pickle(path) as stream:
        opcodes, arrays = take_out(stream.file.read())
        file = io.BufferedReader(io.BytesIO(opcodes))
        value = run(_Unpickler(file, path, stream.storages, arrays), path)
        stream.finish(file)
        return value


def take_out(opcodes: bytes) -> tuple[bytes, list[np.ndarray]]:
    """The opcodes with references in place of long lists of floats, and these as float64 arrays."""
    kept: list[bytes] = []
    arrays: list[np.ndarray] = []
    position = 0
    for _ in range(_MOST_LISTS):
        found = _LIST.search(opcodes, position)
        if not found:
            break
        numbers, end = _floats(opcodes, found.end())
        if len(numbers) < _WORTH_IT or opcodes[end : end + 1] in b"(Ga":
            # Too short, or more may be appended to it.
            kept.append(opcodes[position : found.end()])
            position = found.end()
            continue
        # BININT2 index, BINPERSID, then the list's own memo index.
        reference = b"M" + len(arrays).to_bytes(2, "little") + b"Q" + found[1]
        kept += (opcodes[position : found.start()], reference)
        arrays.append(numbers)
        position = end
    return b"".join((*kept, opcodes[position:])), arrays


def _floats(opcodes: bytes, start: int) -> tuple[np.ndarray, int]:
    """The floats of all whole batches from `start` on, and where they end."""
    pieces = [np.empty(0)]
    while len(full := _full_batches(opcodes, start)):
        pieces.append(full["items"]["value"].astype(np.float64).reshape(-1))
        start += len(full) * _BATCH.itemsize
    count = min(1000, max(0, len(opcodes) - start - 1) // _ITEM.itemsize)
    items = np.frombuffer(opcodes, _ITEM, count, start + 1) if count else np.empty(0, _ITEM)
    others = np.flatnonzero(items["op"] != b"G")
    items = items[: others[0]] if len(others) else items
    end = start + 1 + items.nbytes
    if len(items) and opcodes[start : start + 1] == b"(" and opcodes[end : end + 1] == b"e":
        pieces.append(items["value"].astype(np.float64))
        start = end + 1
    return np.concatenate(pieces), start


def _full_batches(opcodes: bytes, start: int) -> np.ndarray:
    count = min(_BATCHES, (len(opcodes) - start) // _BATCH.itemsize)
    if not count:
        return np.empty(0, _BATCH)
    batches = np.frombuffer(opcodes, _BATCH, count, start)
    whole = (batches["mark"] == b"(") & (batches["end"] == b"e") & (batches["items"]["op"] == b"G").all(axis=1)
    return batches if whole.all() else batches[: whole.argmin()]


class _Unpickler(Unpickler):
    def __init__(self, file: IO[bytes], path: Path, storages: Storages, arrays: list[np.ndarray]) -> None:
        super().__init__(file, path, storages)
        self._arrays = arrays

    def persistent_load(self, pid: Any) -> Any:
        return self._arrays[pid] if type(pid) is int else super().persistent_load(pid)
