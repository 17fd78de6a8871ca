"""Convert the ids of samples with faces: laion_face_ids.pth -> ids/part-000NN.parquet, sorted and unique.

The file holds one collection of sample ids for each of the 32 parts: a list, a tuple, or a dict by part number, of
lists, tuples, sets, arrays or tensors of ints or floats. 443 MB for 49 M ids speak for pickled floats (9 bytes each).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.files import (
    Fingerprint,
    locked,
    make_fingerprint,
    remove_partials,
    stamped,
    written_whole,
)
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.schema import IDS
from laion_face_builder.upstream import kept
from laion_face_builder.upstream.float_lists import FloatList, load_lists

log = logging.getLogger("laion_face")

#: Bits of the significand: above 2**bits a float of that size no longer tells neighbouring ints apart.
_EXACT = {2: 11, 4: 24, 8: 53}
_WAY_OUT = "Check that it is laion_face_ids.pth, and fetch it again from its source."


def ids_fingerprint(part: int, source_version: str) -> Fingerprint:
    """Return what defines ids/part-000NN.parquet."""
    return make_fingerprint("ids", part=part, source=source_version)


def write_ids(pth: Path, data: DataDir, parts: Sequence[int], source_version: str) -> None:
    """Write the sample ids of each of `parts` that is not there yet with this fingerprint; one load serves all.

    Raises:
        UnsafePickle, BadFile: `pth` is not a list of ids for 32 parts; the message names the part and the value.
    """
    with locked(data.ids(0).parent / "all"):
        missing = [part for part in parts if lacks_ids(data, part, source_version)]
        if not missing:
            return
        remove_partials(data.ids(0).parent)
        log.info("reading the sample ids of %d parts from %s", len(missing), pth)
        by_part = _by_part(pth, load_lists(pth))
        for part in missing:
            ids = sorted_ids(pth, part, by_part.pop(part))
            _write(data.ids(part), ids, ids_fingerprint(part, source_version))


def lacks_ids(data: DataDir, part: int, source_version: str | None) -> bool:
    """Tell whether a part's ids are missing, or from another source; None is a source that is not known yet."""
    ours = kept.fingerprint(data, data.ids(part))
    return ours is None or source_version is None or ours != ids_fingerprint(part, source_version)


def read_ids(path: Path) -> np.ndarray:
    """Read the ids in one of our files: int64[n], ascending, unique."""
    with pq.ParquetFile(path) as file:
        ids: np.ndarray = file.read(columns=IDS.names)["sample_id"].to_numpy()
    return ids


def sorted_ids(pth: Path, part: int, values: object) -> np.ndarray:
    """Return the ids of a part: int64[n], ascending, unique. Doubled ones are counted in the log.

    Raises:
        BadFile: something in `values` is not a sample id.
    """
    ids = as_ids(values.read() if isinstance(values, FloatList) else values)
    if not isinstance(ids, np.ndarray):
        raise BadFile(pth, found=f"{ids} in part {part}", expected="whole sample ids from 0 to 2**53", way_out=_WAY_OUT)
    ids.sort()
    # Not np.unique: NumPy 2.3 made it a hash table, 60 times slower here than looking at neighbours.
    unique: np.ndarray = ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]
    if doubled := len(ids) - len(unique):
        log.warning("%s: part %d lists %d ids more than once", pth, part, doubled)
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
    """Return `values` as an array if they are one row of numbers; NumPy alone would make True a 1."""
    if not isinstance(values, np.ndarray) and not {bool, np.bool_}.isdisjoint(map(type, values)):
        return None
    try:
        numbers = np.asarray(values)
    except (ValueError, OverflowError):
        return None
    return numbers if numbers.ndim == 1 and numbers.dtype.kind in "iuf" else None


def _wrong(numbers: np.ndarray) -> np.ndarray:
    # One bool for each number that is not a sample id.
    if numbers.dtype.kind == "f":
        limit = 2.0 ** _EXACT[numbers.dtype.itemsize]
        with np.errstate(invalid="ignore"):
            return np.asarray(~((numbers >= 0) & (numbers < limit) & (np.trunc(numbers) == numbers)))
    return np.asarray((numbers < 0) | (numbers > np.iinfo(np.int64).max))


def _first_wrong(values: Any) -> str:
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return f"an array of shape {values.shape}"
    for value in values:
        kind = np.ndarray if np.ndim(value) else type(value)
        if isinstance(value, bool) or not issubclass(kind, int | float | np.integer | np.floating):
            if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf":
                continue
            return f"{value!r:.60} ({type(value).__name__})"
        if not 0 <= value < 1 << 53 or value != int(value):
            return f"{value!r:.60}"
    return f"values that are no list of numbers ({type(values).__name__})"


def _by_part(pth: Path, value: object) -> dict[int, object]:
    """Return the collections by part number, in a dict of its own so that each can be freed once it is used."""
    if isinstance(value, list | tuple) and len(value) == len(ALL_PARTS):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        try:
            by_part = {int(key): ids for key, ids in value.items()}
        except (TypeError, ValueError):
            by_part = {}
        if sorted(by_part) == list(ALL_PARTS) and len(by_part) == len(value):
            return by_part
    length = f" of {len(value)}" if hasattr(value, "__len__") else ""
    raise BadFile(
        pth,
        found=f"a {type(value).__name__}{length}",
        expected="a list, tuple or dict (keys 0 to 31) with the ids of 32 parts",
        way_out=_WAY_OUT,
    )


def _write(path: Path, ids: np.ndarray, fingerprint: Fingerprint) -> None:
    table = pa.table([pa.array(ids, pa.int64())], schema=stamped(IDS, fingerprint))
    with written_whole(path) as partial:
        # Sorted numbers: the differences take a third of the room.
        how = {"use_dictionary": False, "column_encoding": {"sample_id": "DELTA_BINARY_PACKED"}}
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True, **how)
