"""Look up which part wants a row, in the sample ids of several parts together.

The metadata of today says nothing of parts, so each of its 361 million rows is looked up among up to 50 million ids. A
table of bits by hash says no to most rows with one look; what is left is searched for in the sorted ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from laion_face_builder.index.ids import read_ids

Ints = npt.NDArray[np.int64]
Parts = npt.NDArray[np.int16]

#: Bits a sample id has to itself, at least: one foreign id in 16 is then searched for in vain.
_BITS_AN_ID = 16
#: 2**64 divided by the golden ratio, odd: its products spread neighbouring ids over all of 64 bits.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
#: A key is an id and the part that lists it, in one number: ids are below 2**53, and there are 32 parts.
_PART_BITS = 5
_AT_ONCE = 1 << 20
#: Keys whose bits are set together: 64 MB of places.
_BITS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class PartIds:
    """The ids of some parts.

    Attributes:
        keys: int64[m], ascending: id * 32 + part. An id that several parts list stands once for each of them.
        bits: uint8[2**k / 8], a bit for each hash value: set if some id has it.
    """

    keys: Ints
    bits: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, files: Mapping[int, Path]) -> PartIds:
        """Read each part's ids/part-000NN.parquet."""
        count = sum(pq.read_metadata(path).num_rows for path in files.values())
        return cls._filled(count, ((part, read_ids(path)) for part, path in files.items()))

    @classmethod
    def of(cls, lists: Mapping[int, Ints]) -> PartIds:
        """Make the table from each part's ids."""
        return cls._filled(sum(map(len, lists.values())), lists.items())

    @classmethod
    def _filled(cls, count: int, lists: Iterable[tuple[int, Ints]]) -> PartIds:
        keys, start = np.empty(count, np.int64), 0  # In place: a second copy of 50 million would be 0.4 GB.
        for part, ids in lists:
            mine = keys[start : start + len(ids)]
            np.left_shift(ids, _PART_BITS, out=mine)
            mine |= part
            start += len(ids)
        keys.sort()
        return cls(keys, _bits_of(keys))

    def maybe(self, values: Ints) -> npt.NDArray[np.bool_]:
        """Tell which of `values` may be here: all that are, and a few others."""
        places = _hashed(values, self.bits)
        found = (self.bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8)) & np.uint8(1)
        maybe: npt.NDArray[np.bool_] = found.view(np.bool_)
        return maybe

    def find(self, values: Ints) -> tuple[Ints, Parts]:
        """Return the places in `values` that are wanted, ascending, and the part that wants each.

        A place comes once for each part.

        Args:
            values: int64[n], sample ids.
        """
        order = np.argsort(values)  # Neighbours are found in one stretch of memory.
        at = np.searchsorted(self.keys, values[order] << _PART_BITS)
        rows, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while len(order):
            there = at < len(self.keys)
            order, at = order[there], at[there]
            hit = self.keys[at] >> _PART_BITS == values[order]
            order, at = order[hit], at[hit]
            rows.append(order)
            places.append(at)
            at = at + 1
        found, place = np.concatenate(rows), np.concatenate(places)
        by_row = np.argsort(found, kind="stable")
        return found[by_row], (self.keys[place[by_row]] & ((1 << _PART_BITS) - 1)).astype(np.int16)


def _bits_of(keys: Ints) -> npt.NDArray[np.uint8]:
    bits = np.zeros((1 << max(10, (_BITS_AN_ID * len(keys)).bit_length())) // 8, np.uint8)
    for start in range(0, len(keys), _BITS_AT_ONCE):
        _set_bits(bits, keys[start : start + _BITS_AT_ONCE])
    return bits


def _set_bits(bits: npt.NDArray[np.uint8], keys: Ints) -> None:
    places = np.empty(len(keys), np.uint32)
    for start in range(0, len(keys), _AT_ONCE):
        places[start : start + _AT_ONCE] = _hashed(keys[start : start + _AT_ONCE] >> _PART_BITS, bits)
    places.sort()  # One window of bits after the other: scattered writes are five times slower.
    starts = np.arange(0, len(bits) * 8, _AT_ONCE).astype(np.uint32)
    bounds = [*np.searchsorted(places, starts), len(places)]
    for start, first, last in zip(starts.tolist(), bounds, bounds[1:], strict=False):
        window = np.zeros(min(_AT_ONCE, len(bits) * 8), np.bool_)
        window[places[first:last] - np.uint32(start)] = True
        bits[start // 8 : (start + len(window)) // 8] |= np.packbits(window, bitorder="little")


def _hashed(values: Ints, bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    width = (len(bits) * 8).bit_length() - 1
    hashed: npt.NDArray[np.uint64] = (values.view(np.uint64) * _SPREAD) >> np.uint64(64 - width)
    return hashed
