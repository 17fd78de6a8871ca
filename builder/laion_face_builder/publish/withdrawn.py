"""Keep out of what is published what was taken down, from DATA_DIR or from the place that is published to.

A place remembers what was taken down from it, and whoever publishes there keeps to that, whatever is in their DATA_DIR.
A part's fingerprint says which of its rows are gone: it is the same whether they left DATA_DIR or are only left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laion_face_builder.examples import parts
from laion_face_builder.index.removals import STAMP, Removals, settled
from laion_face_builder.index.removed import Removed, hash_of
from laion_face_builder.log import logger
from laion_face_builder.options import Options
from laion_face_builder.publish.manifest import Entry, Manifest
from laion_face_builder.publish.published_files import ids_bytes


def kept_to(options: Options, there: Manifest | None) -> tuple[Options, Removals]:
    """Give the options with which nothing that was taken down is published, and all removals that are known then.

    Args:
        there: what the place holds already.

    Raises:
        StateConflict: a removal from DATA_DIR is not finished.
    """
    mine = settled(options.data)
    known = Removals() if there is None else there.removals
    removals = known.merged_with(mine).published()
    if more := removals.removed - mine.removed:
        removed = (options.filters.removed or Removed()) | more
        options = replace(options, filters=replace(options.filters, removed=removed))
        for part in options.parts:
            removals = removals.with_found(part, _named_in(options, part, more))
    elsewhere = [part for part in (there.parts if there is not None else ()) if part not in options.parts]
    if elsewhere and removals.removed - known.removed:
        logger.warning(
            "parts %s stay as they were published, and may have rows that were taken down since: `laion-face remove "
            "--target` takes them out",
            ", ".join(map(str, elsewhere)),
        )
    stamps = tuple((part, stamp[STAMP]) for part in options.parts if (stamp := removals.stamp(part)))
    return replace(options, stamps=stamps), removals


def _named_in(options: Options, part: int, removed: Removed) -> list[str]:
    """Return the hashes of the ids of those of the part's rows that are named."""
    found: list[str] = []
    with parts.index_of(options, part) as index:
        for start, stop in index.row_groups:
            rows = index.read(start, stop, ["sample_id", "url"])
            named = rows["sample_id"].filter(pa.array(removed.mask(rows)))
            found += (hash_of("sample_ids", number) for number in named.to_pylist())
    return found


def is_made_from(entry: Entry, made_from: Mapping[str, Any], pictures: frozenset[Any]) -> bool:
    """Say whether a file was made from the same as `made_from`, if rows may have left both since.

    Args:
        pictures: what `made_from` may have for its pictures: see `Removals.pictures_before`.
    """
    then, now = ({**one, STAMP: None, "pictures": None} for one in (entry.fingerprint, made_from))
    return then == now and entry.fingerprint.get("pictures") in pictures


@dataclass(frozen=True)
class PublishedRows:
    """The rows of a part that are published with pictures, in order.

    Attributes:
        ids: int64[m], their sample ids.
        numbers: int64[m], their rows in the part's index, ascending.
        rows: how many rows the index has.
    """

    ids: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    rows: int

    @classmethod
    def of(cls, options: Options, part: int) -> PublishedRows:
        """Read which rows pass the filters."""
        columns = list(dict.fromkeys(("sample_id", *options.filters.columns)))
        ids, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        with parts.index_of(options, part) as index:
            for start, stop in index.row_groups:
                table = index.read(start, stop, columns)
                keep = options.filters.mask(table)
                ids.append(table["sample_id"].fill_null(-1).to_numpy()[keep])
                numbers.append(start + np.flatnonzero(keep))
            return cls(np.concatenate(ids), np.concatenate(numbers), index.num_rows)

    def placed(self, entry: Entry, start: int) -> Entry | None:
        """Return the entry of a file with the rows of the index that it speaks of now, from `start` on.

        None if the file's samples are not those that come there.
        """
        at = int(np.searchsorted(self.numbers, start))
        stop = at + entry.rows
        if hashlib.sha256(ids_bytes(pa.array(self.ids[at:stop], pa.int64()))).hexdigest() != entry.sample_ids:
            return None
        return replace(entry, first=start, stop=int(self.numbers[stop]) if stop < len(self.numbers) else self.rows)
