"""Find a part's rows in a file by the column `part`; mostly the statistics of its row groups tell them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

#: int64[k, 2]: first row and the row after the last of runs of rows, ascending.
Spans = npt.NDArray[np.int64]

#: The least and the greatest part in a row group; None if its statistics do not say it for every row.
Known = tuple[int, int] | None


def known_parts(metadata: pq.FileMetaData) -> list[Known]:
    """Return what the statistics say of the column `part` in each row group."""
    return [_known(metadata.row_group(group)) for group in range(metadata.num_row_groups)]


def may_hold(known: Iterable[Known], part: int) -> bool:
    """Tell whether a file with these row groups can have rows of the part."""
    return any(one is None or one[0] <= part <= one[1] for one in known)


def holds_only(known: Iterable[Known], part: int) -> bool:
    """Tell whether all rows of a file with these row groups are certainly the part's."""
    return all(one == (part, part) for one in known)


def spans_of(
    part: int,
    bounds: Sequence[tuple[int, int]],
    known: Sequence[Known],
    read: Callable[[int, int], npt.NDArray[np.int16]],
) -> Spans:
    """Find the runs of the part's rows.

    Args:
        bounds: first row and the row after the last of each row group.
        known: what the statistics say of each row group.
        read: (first row, row after the last) -> the column; asked for row groups of several parts only.
    """
    spans: list[Spans] = [np.empty((0, 2), np.int64)]
    for (start, stop), one in zip(bounds, known, strict=True):
        if not may_hold([one], part):
            continue
        spans.append(np.array([[start, stop]]) if one == (part, part) else start + _runs(read(start, stop) == part))
    return _merged(np.concatenate(spans))


def _known(group: pq.RowGroupMetaData) -> Known:
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "part":
            found = column.statistics
            if found is None or not found.has_min_max or found.null_count:
                return None
            low, high = found.min, found.max
            return (int(low), int(high)) if isinstance(low, int) and isinstance(high, int) else None
    return None


def _runs(chosen: npt.NDArray[np.bool_]) -> Spans:
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.int64)


def _merged(spans: Spans) -> Spans:
    """Join runs that touch, so that there are as few as can be."""
    if len(spans) < 2:
        return spans
    apart = spans[1:, 0] != spans[:-1, 1]
    starts, stops = spans[np.append(True, apart), 0], spans[np.append(apart, True), 1]
    return np.stack([starts, stops], axis=1)
