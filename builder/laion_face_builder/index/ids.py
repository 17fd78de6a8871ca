"""Convert the ids of samples with faces: laion_face_ids.pth -> ids/part-000NN.parquet, sorted and unique.

The file holds one collection of sample ids for each of the 32 parts: a list, a tuple, or a dict by part number, of
lists, tuples, sets, arrays or tensors of ints or floats. 443 MB for 49 M ids speak for pickled floats (9 bytes each).

`PartIds` looks up which part wants a row. The metadata of today says nothing of parts, so each of its 361 million rows
is looked up among up to 50 million ids. A table of bits by hash says no to most rows with one look; what is left is
searched for in the sorted ids.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.files import (
    Fingerprint,
    make_fingerprint,
    read_fingerprint,
    remove_partials,
    stamped,
    written_whole,
)
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import rows_in, table_of
from laion_face_builder.schema import IDS
from laion_face_builder.shown import counted
from laion_face_builder.sources import data_store
from laion_face_builder.torch_pickle.float_lists import FloatList, load_lists
from laion_face_builder.torch_pickle.unpickler import one_door

#: From here on a float64 cannot tell neighbours apart, so no id of LAION's can be that large; `part_ids` has 58 bits.
_LIMIT = 1 << 53
#: Bits of the significand: above 2**bits a float of that size no longer tells neighbouring ints apart.
_EXACT = {2: 11, 4: 24, 8: 53}
_WAY_OUT = "Check that it is laion_face_ids.pth, and fetch it again from its source."

#: Tells, bool[n], which of the ids of a part, int64[n], are kept; None is all of them.
KeptIds = Callable[[int, np.ndarray], np.ndarray] | None


def ids_fingerprint(part: int, source_version: str) -> Fingerprint:
    """Return what defines ids/part-000NN.parquet."""
    return make_fingerprint("ids", part=part, source=source_version)


def write_ids(pth: Path, data: DataDir, parts: Sequence[int], source_version: str, kept: KeptIds = None) -> None:
    """Write the sample ids of `parts`; one load serves all. The caller holds the lock on the ids of all parts.

    Raises:
        UnsafePickle, BadFile: `pth` is not a list of ids for 32 parts; the message names the part and the value.
    """
    remove_partials(data.ids(0).parent)
    logger.info("reading the sample ids of %d parts from %s", len(parts), pth)
    by_part = _by_part(pth, load_lists(pth))
    for part in parts:
        ids = sorted_ids(pth, part, by_part.pop(part))
        ids = ids if kept is None else ids[kept(part, ids)]
        _write(data.ids(part), ids, ids_fingerprint(part, source_version))


def rewrite_ids(path: Path, keep: np.ndarray) -> None:
    """Write one of our files again with only those of its ids, bool[n], that are kept."""
    fingerprint = read_fingerprint(path)
    assert fingerprint is not None, "it is there"  # noqa: S101 - says it to the type checker
    _write(path, read_ids(path)[keep], fingerprint)


def lacks_ids(data: DataDir, part: int, source_version: str | None) -> bool:
    """Tell whether a part's ids are missing, or from another source; None is a source that is not known yet."""
    ours = data_store.fingerprint(data, data.ids(part))
    return ours is None or source_version is None or ours != ids_fingerprint(part, source_version)


def read_ids(path: Path) -> np.ndarray:
    """Read the ids in one of our files: int64[n], ascending, unique.

    Raises:
        BadFile: it is damaged.
    """
    ids: np.ndarray = table_of(path, IDS.names)["sample_id"].to_numpy()
    return ids


def sorted_ids(pth: Path, part: int, values: object) -> np.ndarray:
    """Return the ids of a part: int64[n], ascending, unique. Doubled ones are counted in the log.

    Raises:
        BadFile: something in `values` is not a sample id.
    """
    with one_door(pth):
        ids = as_ids(values.read() if isinstance(values, FloatList) else values)
    if not isinstance(ids, np.ndarray):
        raise BadFile(pth, found=f"{ids} in part {part}", expected="whole sample ids from 0 to 2**53", way_out=_WAY_OUT)
    ids.sort()
    # Not np.unique: NumPy 2.3 made it a hash table, 60 times slower here than looking at neighbours.
    unique: np.ndarray = ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]
    if doubled := len(ids) - len(unique):
        logger.warning("%s: part %d lists %s more than once", pth, part, counted(doubled, "id"))
    return unique


def as_ids(values: object) -> np.ndarray | str:
    """Return `values` as int64[n] in their order, or what is wrong with them, with the first wrong value.

    Args:
        values: list, tuple, set or one-dimensional array of ints, whole floats or NumPy scalars, not negative.
    """
    if isinstance(values, set | frozenset):
        values = list(values)
    if not isinstance(values, list | tuple | np.ndarray):
        return f"a {type(values).__name__}"
    numbers = _numbers(values)
    if numbers is None:
        return _first_wrong(values)
    if numbers.size == 0:
        return np.empty(0, np.int64)
    wrong = _wrong(numbers)
    if wrong.any():
        return f"{numbers[wrong.argmax()]!s}"
    return numbers.astype(np.int64)  # always a copy


def _numbers(values: Any) -> np.ndarray | None:
    """Return `values` as an array if they are one row of numbers; NumPy alone would make True a 1, and walk lists."""
    if not isinstance(values, np.ndarray):
        kinds = set(map(type, values))
        arrays = {kind for kind in kinds if issubclass(kind, np.ndarray)}
        if not all(_is_number(kind) for kind in kinds - arrays):
            return None
        if arrays and any(value.ndim for value in values if isinstance(value, np.ndarray)):
            return None
    try:
        numbers = np.asarray(values)
    except (ValueError, OverflowError):
        return None
    return numbers if numbers.ndim == 1 and numbers.dtype.kind in "iuf" else None


def _is_number(kind: type) -> bool:
    return issubclass(kind, int | float | np.integer | np.floating) and kind is not bool


def _wrong(numbers: np.ndarray) -> np.ndarray:
    # One bool for each number that is not a sample id.
    if numbers.dtype.kind == "f":
        limit = 2.0 ** _EXACT[numbers.dtype.itemsize]
        with np.errstate(invalid="ignore"):
            return np.asarray(~((numbers >= 0) & (numbers < limit) & (np.trunc(numbers) == numbers)))
    return np.asarray((numbers < 0) | (numbers >= _LIMIT))


def _first_wrong(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"an array of shape {values.shape} and type {values.dtype}"
    for value in values:
        if isinstance(value, np.ndarray):
            if value.ndim == 0 and value.dtype.kind in "iuf":
                continue
            return f"an array of shape {value.shape} and type {value.dtype} in place of an id"
        if not _is_number(type(value)):
            return f"{reprlib.repr(value)} ({type(value).__name__})"
        if not 0 <= value < _LIMIT or value != int(value):
            return reprlib.repr(value)
    return f"values that are no list of numbers ({type(values).__name__})"


def _by_part(pth: Path, value: object) -> dict[int, object]:
    """Return the collections by part number, in a dict of its own so that each can be freed once it is used."""
    if isinstance(value, list | tuple) and len(value) == len(ALL_PARTS):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        try:
            by_part = {int(key): ids for key, ids in value.items()}
        except (TypeError, ValueError, OverflowError):
            by_part = {}
        if sorted(by_part) == list(ALL_PARTS) and len(by_part) == len(value):
            return by_part
    length = f" of {len(value)}" if isinstance(value, list | tuple | Mapping) else ""
    raise BadFile(
        pth,
        found="an array" if isinstance(value, np.ndarray) else f"a {type(value).__name__}{length}",
        expected="a list, tuple or dict (keys 0 to 31) with the ids of 32 parts",
        way_out=_WAY_OUT,
    )


def _write(path: Path, ids: np.ndarray, fingerprint: Fingerprint) -> None:
    table = pa.table([pa.array(ids, pa.int64())], schema=stamped(IDS, fingerprint))
    with written_whole(path) as partial:
        # Sorted numbers: the differences take a third of the room.
        how = {"use_dictionary": False, "column_encoding": {"sample_id": "DELTA_BINARY_PACKED"}}
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True, **how)


Ints = npt.NDArray[np.int64]
Parts = npt.NDArray[np.int16]
#: Bits a sample id has to itself, at least: one foreign id in 16 is then searched for in vain.
_BITS_AN_ID = 16
#: 2**64 divided by the golden ratio, odd: its products spread neighbouring ids over all of 64 bits.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
#: A key is an id and the part that lists it, in one number: `ids` has none from 2**53 on, and there are 32 parts.
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
        count = sum(map(rows_in, files.values()))
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
