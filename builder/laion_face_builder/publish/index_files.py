"""Publish the index: the very bytes of the prepared file, unless they must change.

They must change if rows are excluded, or if the file lacks what the Hub's viewer needs, as files of older versions do.
Then the file is written anew, row group by row group, with the same schema and kind of fingerprint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from laion_face_builder.files import Fingerprint, stamped, written_whole
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.publish.tables import viewer_faults, writer_of
from laion_face_builder.schema import INDEX

logger = logging.getLogger("laion_face")


def published_fingerprint(index: IndexPart, filters: Filters) -> Fingerprint:
    """Give the prepared part's own fingerprint, with the filters if rows are left out."""
    return index.fingerprint if filters.is_empty else {**index.fingerprint, "filters": filters.as_dict()}


def is_publishable(path: Path, filters: Filters) -> bool:
    """Say whether the prepared file can be published as it is."""
    return filters.is_empty and not viewer_faults(path)


def write_published(target: Path, index: IndexPart, filters: Filters) -> None:
    """Write those rows of the part that pass the filters to `target`. At most two row groups are in memory.

    Raises:
        BadFile: the index cannot be read.
    """
    schema = stamped(INDEX, published_fingerprint(index, filters))
    columns = filters.columns
    kept = [
        int(filters.mask(index.read(*bound, columns)).sum()) if columns else bound[1] - bound[0]
        for bound in index.row_groups
    ]
    if filters.exclude is not None:
        logger.info("%s: %d of %d rows are left out", target.name, index.num_rows - sum(kept), index.num_rows)
    with written_whole(target) as partial, writer_of(partial, schema) as writer:
        for table in _cut(_passing(index, filters), row_group_bounds(sum(kept))):
            writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))


def _passing(index: IndexPart, filters: Filters) -> Iterator[pa.Table]:
    for start, stop in index.row_groups:
        table = index.read(start, stop)
        yield table if filters.is_empty else table.filter(pa.array(filters.mask(table)))


def _cut(tables: Iterator[pa.Table], bounds: list[tuple[int, int]]) -> Iterator[pa.Table]:
    """Yield the same rows, cut at `bounds`."""
    held = INDEX.empty_table()
    for start, stop in bounds:
        while held.num_rows < stop - start:
            held = pa.concat_tables([held, next(tables)])
        yield held.slice(0, stop - start).combine_chunks()
        held = held.slice(stop - start)
