"""Which rows a dataset reads, and in which order: shards, and the walk over them.

A `Plan` is all that travels to worker processes. `walk` gives every index row of its shards, wanted or not, and can
start at any of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from laion_face_builder.errors import OptionError, PictureError, StateConflict
from laion_face_builder.examples import beside, parts
from laion_face_builder.examples.example import INDEX_COLUMNS, ExampleMaker, Row
from laion_face_builder.examples.report import Tally
from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.fetch_in_order import arriving, ordered
from laion_face_builder.fetch.fetcher import shared_fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.pictures import Picture
from laion_face_builder.index.reader import IndexPart, RowBatch, in_batches
from laion_face_builder.layout import ROW_GROUPS
from laion_face_builder.options import INDEX_ORDER, Options
from laion_face_builder.values import as_written


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `of` row ranges of a part; known before anything is prepared."""

    part: int
    number: int
    of: int

    def bounds(self, rows: int) -> tuple[int, int]:
        """Give the first row and the row after the last, in a part with `rows` rows."""
        return rows * self.number // self.of, rows * (self.number + 1) // self.of

    def halves(self) -> list[Shard]:
        """Split the shard into two with the same rows."""
        return [Shard(self.part, 2 * self.number + half, 2 * self.of) for half in (0, 1)]


@dataclass(frozen=True)
class Plan:
    """What to read, and where its counts go.

    Attributes:
        options: which rows and pictures.
        report_folder: gets the tallies.
        adopted: see `parts.open_part`.
    """

    options: Options
    report_folder: Path | None
    adopted: parts.Adopted | None = None

    def shards(self) -> list[Shard]:
        """List all shards, part by part."""
        count = self.options.shards_per_part
        return [Shard(part, number, count) for part in self.options.parts for number in range(count)]


class RowMark(NamedTuple):
    """An index row, and what it is later known by: its sample, and how many rows the part's index has."""

    part: int
    row: int
    sample_id: int
    rows: int

    def require(self, index: IndexPart) -> None:
        """Check that `index` still has the same row in this place.

        Raises:
            StateConflict: the part has other rows now.
        """
        if index.num_rows != self.rows:
            raise self._gone(f"the index had {self.rows:,} rows then, and has {index.num_rows:,} now")
        row = index.read(self.row, self.row + 1, ["sample_id"], is_lenient=True)
        if (now := _numbered(row)[0]) != self.sample_id:
            raise self._gone(f"row {self.row:,} was sample {self.sample_id} then, and is sample {now} now")

    def _gone(self, what: str) -> StateConflict:
        return StateConflict(
            f"state of a stream: part {self.part} is another one: {what}. Use the index that the state was made with, "
            "or start without the state."
        )


class Position(NamedTuple):
    """Where a walk begins.

    Attributes:
        shard: place of the shard among those of the walk.
        rows: how many of its rows are done.
        after: the last of these, which has to be the same row still; None if that is not known.
    """

    shard: int = 0
    rows: int = 0
    after: RowMark | None = None


class MarkedRow(NamedTuple):
    """One row, its key in the dataset, and its mark."""

    mark: RowMark
    key: int
    row: Row


#: A row and its picture, why there is none, or None if it is not fetched.
Fetched = tuple[MarkedRow, Picture | PictureError | None]


def walk(plan: Plan, shards: Sequence[Shard], start: Position, tally: Tally) -> Generator[MarkedRow, None, None]:
    """Yield every index row of `shards` from `start` on. Files are open only while this generator lives.

    Raises:
        StateConflict: `start` is not in these rows.
    """
    with ExitStack() as stack:
        here: int | None = None
        for place in range(start.shard, len(shards)):
            shard = shards[place]
            if shard.part != here:
                stack.close()
                part = stack.enter_context(parts.open_part(plan.options, shard.part, plan.adopted))
                maker, here = _maker(plan.options, part, tally), shard.part
            first, stop = shard.bounds(part.index.num_rows)
            if place == start.shard:
                first = _resumed(start, part.index, first, stop)
            for sample_id, row in _rows(maker, part.index, first, stop):
                mark = RowMark(shard.part, row.number, sample_id, part.index.num_rows)
                yield MarkedRow(mark, (shard.part << 40) + row.number, row)


def _resumed(start: Position, index: IndexPart, first: int, stop: int) -> int:
    """Give the row where a walk begins, in the shard with rows `first` to `stop`.

    Raises:
        StateConflict: the row before it has changed, or the shard has too few rows.
    """
    if start.after is not None:
        start.after.require(index)
    if first + start.rows > stop:
        raise StateConflict(
            f"state of a stream: {start.rows:,} rows of a shard are done, which has {stop - first:,}. Use the "
            "shards_per_part that the state was made with, or start without it."
        )
    return first + start.rows


def _maker(options: Options, part: parts.OpenPart, tally: Tally) -> ExampleMaker:
    return ExampleMaker(options, part.pictures, part.is_fetched, tally)


def _rows(maker: ExampleMaker, index: IndexPart, start: int, stop: int) -> Iterator[tuple[int, Row]]:
    """Yield for each row its sample id, and the row. One row group at a time is read.

    A row has no batch if the filters drop it, or if it cannot be read.
    """
    filters = maker.options.filters
    columns = list(dict.fromkeys((*INDEX_COLUMNS, *filters.columns)))
    size = max(1, math.ceil(index.num_rows / ROW_GROUPS))
    for first in range(start, stop, size):
        table = index.read(first, min(first + size, stop), columns, is_lenient=True)
        bad = table["faces"].is_null().to_numpy()
        keep, named = np.zeros(len(bad), np.bool_), np.zeros(len(bad), np.bool_)
        good = table.filter(pa.array(~bad)) if bad.any() else table
        keep[~bad], named[~bad] = filters.mask(good), filters.excluded(good)
        kept = table.select(INDEX_COLUMNS).filter(pa.array(keep))
        if maker.options.more is not None and kept.num_rows:
            kept = beside.with_more(kept, index, (first, first + table.num_rows), keep, maker.options.more)
        wanted = _places(kept)
        known = zip(_numbered(table), keep.tolist(), named.tolist(), bad.tolist(), strict=True)
        for at, (sample_id, is_kept, is_named, is_bad) in enumerate(known):
            batch, place = next(wanted) if is_kept else (None, 0)
            yield sample_id, Row(maker, first + at, batch, place, is_named, is_bad)


def _numbered(table: pa.Table) -> list[int]:
    """Return the sample ids; -1 for one that cannot be read."""
    ids: list[int] = table["sample_id"].fill_null(-1).to_pylist()
    return ids


def _places(table: pa.Table) -> Iterator[tuple[RowBatch, int]]:
    return ((batch, place) for batch in in_batches(table) for place in range(len(batch)))


def fetched(plan: Plan, steps: Iterator[MarkedRow], order: str = INDEX_ORDER) -> Generator[Fetched, None, None]:
    """Yield `steps` with their pictures, or the reasons why there is none; None where the picture is not fetched.

    A thread fetches, from the first picture that is needed until this generator ends or is dropped; all such generators
    of the process that have the same limits share one thread. It runs ahead across shards and parts.

    Args:
        plan: which pictures, and the limits of fetching.
        steps: the rows that need them.
        order: INDEX_ORDER, or ARRIVAL_ORDER for each step as soon as its picture is there.
    """
    options = plan.options
    if options.images not in ("auto", "fetch"):
        yield from ((step, None) for step in steps)
        return
    limits = FetchLimits.of(options.fetch)
    keep = options.ahead.cache_images
    cache = PictureCache(keep, options.ahead.cache_bytes) if keep is not None else None
    with shared_fetcher(limits, cache) as fetcher:
        with_pictures = ordered if order == INDEX_ORDER else arriving
        pairs = with_pictures(
            steps,
            fetcher,
            url_of=lambda step: step.row.url_to_fetch,
            lookahead=options.ahead.lookahead,
            max_buffer_bytes=options.ahead.max_buffer_bytes,
        )
        with closing(pairs):
            yield from pairs


def world_size() -> int:
    """Give the number of ranks that train together, as torchrun and its like set it; 1 without them.

    Raises:
        OptionError: the variable WORLD_SIZE is no such number.
    """
    value = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not value.isdecimal() or int(value) < 1:
        raise OptionError(f"WORLD_SIZE={as_written(value)}: expected the number of ranks, 1 or more; or unset it")
    return int(value)


def shards_per_part_for(parts_read: int, world: int, near: int = ROW_GROUPS) -> int:
    """Give the least shards_per_part from `near` on with which all of `world` ranks get the same number of shards."""
    step = world // math.gcd(parts_read, world)
    return math.ceil(near / step) * step
