"""Read what the footer of a Parquet file says of row groups and their columns, without asking pyarrow.

With a damaged or hostile footer, `RowGroupMetaData.column` of pyarrow (21 to 26) ends the whole process: exceptions of
C++ pass through it. `ColumnChunkMetaData.statistics` is no better. What opens files and reads pages gives errors.
So pyarrow opens and reads, and what those two would say is read here. No other module calls them.

A footer is one struct in Thrift's compact protocol: the `FileMetaData` of parquet-format, whose numbers of fields stand
in `_chunk`. It is read once, also from afar, for pyarrow and for us.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: How deep structs and lists may lie in each other; ten do in parquet-format.
_DEEPEST = 32
_MAGIC = b"PAR1"
#: What is read of a file's end at first: most footers are no longer.
_FIRST_READ = 1 << 16
#: Physical types whose statistics are plain numbers: INT32 and INT64.
_INTS = {1: 4, 2: 8}
#: Compressions by their numbers in parquet-format.
ZSTD = 6


@dataclass(frozen=True)
class ColumnChunk:
    """What a footer says of one column in one row group.

    Attributes:
        path: the column's name, with those of what it lies in before it.
        codec: number of the compression in parquet-format.
        values: how many values there are, nulls and empty lists included.
        size: bytes as they lie in the file.
        bounds: the least and the greatest value, if they are whole numbers, and stated.
        nulls: how many values are null, if it is stated.
        is_indexed: whether its pages are listed in the file's page index.
    """

    path: str
    codec: int
    values: int
    size: int
    bounds: tuple[int, int] | None
    nulls: int | None
    is_indexed: bool


class OpenParquet(pq.ParquetFile):  # type: ignore[misc]  # pyarrow says nothing of its types
    """An open Parquet file that checks its pages as they are read, and knows its own footer.

    Args:
        source: a path, or an open file.
        footer: the bytes of its footer, if they have been read before.
        how: further arguments of `pyarrow.parquet.ParquetFile`.
    """

    def __init__(self, source: Any, footer: bytes | None = None, **how: Any) -> None:
        self.footer = _footer_of(source) if footer is None else footer
        metadata = None
        if self.footer is not None:
            whole = _MAGIC + self.footer + len(self.footer).to_bytes(4, "little") + _MAGIC
            metadata = pq.read_metadata(pa.BufferReader(whole))
        # What has no footer is for pyarrow to blame, in its words.
        super().__init__(source, metadata=metadata, page_checksum_verification=True, **how)

    @cached_property
    def chunks(self) -> list[list[ColumnChunk]]:
        """What the footer says of each row group's columns.

        Raises:
            pyarrow.ArrowInvalid: the footer is damaged.
        """
        try:
            found, _ = _struct(self.footer or b"", 0)
            groups = [[_chunk(one) for one in group[1]] for group in found[4]]
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise pa.ArrowInvalid(f"a damaged footer ({type(error).__name__}: {error})") from error
        if len(groups) != self.num_row_groups or any(len(group) != self.metadata.num_columns for group in groups):
            raise pa.ArrowInvalid("a footer whose row groups have not as many columns as it says")
        return groups


def _footer_of(source: Any) -> bytes | None:
    """Return the bytes of a file's footer; None if the file has none."""
    if isinstance(source, str | os.PathLike):
        with pa.OSFile(os.fspath(source)) as file:
            return _footer_of(file)
    size = source.seek(0, os.SEEK_END)
    end = _tail(source, size, min(size, _FIRST_READ))
    length = int.from_bytes(end[-8:-4], "little") + 8
    if end[-4:] != _MAGIC or length > size - len(_MAGIC):
        return None
    if length > len(end):
        end = _tail(source, size - len(end), length - len(end)) + end
    return end[-length:-8]


def _tail(source: Any, stop: int, size: int) -> bytes:
    source.seek(stop - size)
    found = bytes(source.read(size))
    if len(found) != size:
        raise pa.ArrowInvalid(f"{len(found)} bytes of {size} before byte {stop}")
    return found


def _chunk(struct: dict[int, Any]) -> ColumnChunk:
    about, pages = struct[3], struct.get(4)
    stated = about.get(12, {})
    # The newer fields, else those that older writers filled.
    low, high = (stated[least] if least in stated else stated.get(older) for least, older in ((6, 2), (5, 1)))
    return ColumnChunk(
        path=b".".join(about[3]).decode(errors="replace"),
        codec=_whole(about[4]),
        values=_whole(about[5]),
        size=_whole(about[7]),
        bounds=_bounds(low, high, _INTS.get(about[1])),
        nulls=None if stated.get(3) is None else _whole(stated[3]),
        is_indexed=pages is not None,
    )


def _bounds(low: Any, high: Any, size: int | None) -> tuple[int, int] | None:
    if size is None or not (isinstance(low, bytes) and isinstance(high, bytes)) or {len(low), len(high)} != {size}:
        return None
    bounds = int.from_bytes(low, "little", signed=True), int.from_bytes(high, "little", signed=True)
    # Those of numbers without a sign may seem to be the wrong way round.
    return bounds if bounds[0] <= bounds[1] else None


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no count where one has to be")
    return value


# Thrift's compact protocol. A part's footer has 100,000 values: small ones are read where they stand, without a call.


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read the struct at `at`; return its fields by their numbers, and where it ends."""
    found: dict[int, Any] = {}
    number = 0
    if depth > _DEEPEST:
        raise ValueError("structs too deep in each other")
    while head := data[at]:
        kind, step = head & 15, head >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = _signed(data, at)
        if 4 <= kind <= 6:
            value = data[at]
            at += 1
            if value > 127:
                value, at = _count(data, at - 1)
            found[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            size = data[at]
            at += 1
            if size > 127:
                size, at = _count(data, at - 1)
            found[number] = data[at : at + size]
            at += size
        elif kind == 12:
            found[number], at = _struct(data, at, depth + 1)
        elif kind < 3:
            found[number] = kind == 1
        else:
            found[number], at = _other(data, at, kind, depth)
    return found, at + 1


def _other(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Read a value that is rare in a struct, or that lies in a list."""
    if 4 <= kind <= 6:
        return _signed(data, at)
    if kind == 12:
        return _struct(data, at, depth + 1)
    if kind in (9, 10):
        return _list(data, at, depth + 1)
    if kind == 8:
        size, at = _count(data, at)
        return data[at : at + size], at + size
    width = {1: 1, 2: 1, 3: 1, 7: 8, 13: 16}[kind]
    return data[at : at + width], at + width


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _count(data, at)
    if depth > _DEEPEST or size > len(data) - at:
        raise ValueError(f"a list of {size}, deeper or longer than it can be")
    found = []
    for _ in range(size):
        value, at = _other(data, at, kind, depth)
        found.append(value)
    return found, at


def _count(data: bytes, at: int) -> tuple[int, int]:
    found, shift = 0, 0
    while (byte := data[at]) > 127:
        found |= (byte & 127) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return found | byte << shift, at + 1


def _signed(data: bytes, at: int) -> tuple[int, int]:
    found, at = _count(data, at)
    return (found >> 1) ^ -(found & 1), at
