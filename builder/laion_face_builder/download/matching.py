"""Find the samples of somebody else's folder that are rows of an index part.

By SAMPLE_ID where it was saved. Else by address: a picture is that of every row with its address, and of several such
samples that with the row's caption comes first. Where a shard tells no addresses, by caption, but only if exactly one
sample and one row have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.download.foreign import FOREIGN, checksum_of
from laion_face_builder.download.sidecar import CheckedTar
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.parquet_files import table_of

Keys = np.ndarray[Any, np.dtype[np.uint64]]
Positions = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
_NONE = -1
_ROWS = 1 << 16


@dataclass(frozen=True)
class RowKeys:
    """By what the n rows of an index part are found: uint64[n] each, and whether a row has an address and a caption."""

    ids: Keys
    urls: Keys
    captions: Keys
    has_url: Flags
    has_caption: Flags

    @classmethod
    def of(cls, index: IndexPart) -> RowKeys:
        """Read the keys of all rows, some ten thousand at a time."""
        ids, urls, captions = [], [], []
        for start in range(0, index.num_rows, _ROWS):
            rows = index.read(start, min(start + _ROWS, index.num_rows), ["sample_id", "url", "caption"])
            ids.append(np.asarray(rows["sample_id"].to_numpy(), np.int64).astype(np.uint64))
            urls.append(_checksums(rows["url"]))
            captions.append(_checksums(rows["caption"]))
        has = [np.concatenate([np.zeros(0, bool), *(mask for _, mask in column)]) for column in (urls, captions)]
        keys = [np.concatenate([np.zeros(0, np.uint64), *(key for key, _ in column)]) for column in (urls, captions)]
        return cls(np.concatenate([np.zeros(0, np.uint64), *ids]), *keys, *has)


def _checksums(texts: pa.ChunkedArray) -> tuple[Keys, Flags]:
    values = texts.to_pylist()
    keys = np.fromiter((checksum_of(text) if text else 0 for text in values), np.uint64, len(values))
    return keys, np.fromiter(map(bool, values), bool, len(values))


@dataclass(frozen=True)
class Matched:
    """Samples that may be the part's, and which of them each row's is.

    Attributes:
        table: the samples, as `foreign.FOREIGN` with the column `tar`, where each lies.
        positions: int64[n]: of each index row, the place in `table`; -1 if there is none.
        held: samples in the folder, whatever part they belong to.
    """

    table: pa.Table
    positions: Positions
    held: int


def matched(keys: RowKeys, shards: Sequence[CheckedTar]) -> Matched:
    """Find the part's rows in shards that were looked through; the later rounds last.

    Of a folder with all of LAION-400M no more is held in memory than one shard and what is found.
    """
    sorted_keys = np.sort(keys.ids), np.unique(keys.urls[keys.has_url]), np.unique(keys.captions[keys.has_caption])
    held, found = 0, []
    for shard in shards:
        table = _table(shard)
        held += table.num_rows
        found.append(table.filter(pa.array(_may_be_ours(table, *sorted_keys))))
    table = pa.concat_tables([_EMPTY, *found])
    positions = np.full(len(keys.ids), _NONE, np.int64)
    # One more, for the position of none: it is no success.
    is_ok = np.append(pc.equal(table["status"], Reason.OK).to_numpy(), False).astype(bool)
    for wanted, offered in _ways(keys, table):
        better = _latest(wanted, offered, is_ok)
        # A success that is found in a later way is better than a failure that was found before.
        is_better = (better != _NONE) & ((positions == _NONE) | (~is_ok[positions] & is_ok[better]))
        positions[is_better] = better[is_better]
    return Matched(table, positions, held)


_EMPTY = FOREIGN.append(pa.field("tar", pa.string())).empty_table()


def _table(shard: CheckedTar) -> pa.Table:
    """Read what was found of a shard; what earlier versions wrote has ids alone."""
    table = table_of(shard.file).replace_schema_metadata()
    for field in FOREIGN:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    name = pa.scalar(shard.name, pa.string())
    place = pc.if_else(pc.is_valid(table["file"]), pc.binary_join_element_wise(name, table["file"], "/"), name)
    return table.select(FOREIGN.names).append_column("tar", place).cast(_EMPTY.schema)


def keys_in(table: pa.Table, name: str) -> tuple[Keys, Flags]:
    """Return a column of keys of such a table, and which of them are there."""
    values = table[name].combine_chunks()
    there = np.asarray(pc.is_valid(values).to_numpy(zero_copy_only=False), bool)
    numbers = pc.fill_null(values, pa.scalar(0, values.type)).to_numpy(zero_copy_only=False)
    return np.asarray(numbers).astype(np.uint64), there


def _may_be_ours(table: pa.Table, ids: Keys, urls: Keys, captions: Keys) -> Flags:
    ours = np.zeros(table.num_rows, bool)
    for name, wanted in (("id", ids), ("url", urls), ("caption", captions)):
        keys, there = keys_in(table, name)
        ours |= there & _isin(keys, wanted)
    return ours


def _isin(keys: Keys, ordered: Keys) -> Flags:
    at = np.searchsorted(ordered, keys)
    at[at == len(ordered)] = 0
    return np.asarray(ordered[at] == keys) if len(ordered) else np.zeros(len(keys), bool)


Sided = tuple[Keys, Flags]


def _ways(keys: RowKeys, table: pa.Table) -> Iterator[tuple[Sided, Sided]]:
    """Yield the ways in which rows are looked for, the best first: keys of the rows, keys of the samples."""
    ids, has_id = keys_in(table, "id")
    urls, has_url = keys_in(table, "url")
    captions, has_caption = keys_in(table, "caption")
    nameless = ~has_id
    yield (keys.ids, np.ones(len(keys.ids), bool)), (ids, has_id)
    yield (
        (_paired(keys.urls, keys.captions), keys.has_url & keys.has_caption),
        (_paired(urls, captions), nameless & has_url & has_caption),
    )
    yield (keys.urls, keys.has_url), (urls, nameless & has_url)
    alone = nameless & ~has_url & has_caption
    yield (keys.captions, _once(keys.captions, keys.has_caption)), (captions, _once(captions, alone))


def _paired(urls: Keys, captions: Keys) -> Keys:
    return urls * np.uint64(0x9E3779B97F4A7C15) + captions  # modulo 2^64, as wanted


def _once(keys: Keys, there: Flags) -> Flags:
    """Return which of the keys that are there stand there once."""
    values, counts = np.unique(keys[there], return_counts=True)
    return there & _isin(keys, values[counts == 1])


def _latest(wanted: Sided, offered: Sided, is_ok: Flags) -> Positions:
    """Find for each wanted key the last success that is offered, or the last failure; -1 if there is neither."""
    keys, there = wanted
    places = np.flatnonzero(offered[1])
    values = offered[0][places]
    order = places[np.lexsort((places, is_ok[places], values))]
    ordered = offered[0][order]
    after = np.searchsorted(ordered, keys, side="right") - 1
    found = np.full(len(keys), _NONE, np.int64)
    if len(order):
        hit = there & (after >= 0) & (ordered[np.maximum(after, 0)] == keys)
        found[hit] = order[after[hit]]
    return found
