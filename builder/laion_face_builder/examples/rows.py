"""Which rows are read, in which order: shards, and the walk over them.

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

import pyarrow as pa

from laion_face_builder.errors import OptionError, PictureError
from laion_face_builder.examples import parts
from laion_face_builder.examples.example import INDEX_COLUMNS, ExampleMaker, Row
from laion_face_builder.examples.report import Tally
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.rows import RowBatch, in_batches
from laion_face_builder.layout import ROW_GROUPS
from laion_face_builder.options import Options
from laion_face_builder.values import as_written
from laion_face_builder.web.ahead import ordered
from laion_face_builder.web.cache import PictureCache
from laion_face_builder.web.fetcher import FetchedPicture, Fetcher
from laion_face_builder.web.limits import FetchLimits
from laion_face_builder.web.no_network import watched


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `of` row ranges of a part; known before anything is prepared."""

    part: int
    number: int
    of: int

    def bounds(self, rows: int) -> tuple[int, int]:
        """First row and the row after the last, in a part with `rows` rows."""
        return rows * self.number // self.of, rows * (self.number + 1) // self.of

    def halves(self) -> list[Shard]:
        """The same rows as two shards."""
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
        """All shards, part by part."""
        count = self.options.shards_per_part
        return [Shard(part, number, count) for part in self.options.parts for number in range(count)]


class Position(NamedTuple):
    """Where a walk is: the shard's place among those of the walk, and how many of its rows are done."""

    shard: int = 0
    rows: int = 0


class Step(NamedTuple):
    """One row, its key in the dataset, and the position after it."""

    after: Position
    key: int
    row: Row


#: A row and its picture, why there is none, or None if it is not fetched.
Fetched = tuple[Step, FetchedPicture | PictureError | None]


def walk(plan: Plan, shards: Sequence[Shard], start: Position, tally: Tally) -> Generator[Step, None, None]:
    """Every index row of `shards` from `start` on. Files are open only while this generator lives."""
    with ExitStack() as stack:
        here: int | None = None
        for place in range(start.shard, len(shards)):
            shard = shards[place]
            if shard.part != here:
                stack.close()
                part = stack.enter_context(parts.open_part(plan.options, shard.part, plan.adopted))
                maker, here = _maker(plan.options, part, tally), shard.part
            first, stop = shard.bounds(part.index.num_rows)
            skipped = start.rows if place == start.shard else 0
            for number, batch, at, named in _rows(plan.options, part.index, min(first + skipped, stop), stop):
                after = Position(place, number + 1 - first)
                yield Step(after, (shard.part << 40) + number, Row(maker, number, batch, at, named))


def _maker(options: Options, part: parts.OpenPart, tally: Tally) -> ExampleMaker:
    return ExampleMaker(options, part.pictures, part.is_fetched, tally)


def _rows(
    options: Options, index: IndexPart, start: int, stop: int
) -> Iterator[tuple[int, RowBatch | None, int, bool]]:
    """Number of each row, where its values are (nowhere if the filters drop it), whether the exclusion list names it.

    One row group at a time is read.
    """
    columns = list(dict.fromkeys((*INDEX_COLUMNS, *options.filters.columns)))
    size = max(1, math.ceil(index.num_rows / ROW_GROUPS))
    for first in range(start, stop, size):
        table = index.read(first, min(first + size, stop), columns)
        keep = options.filters.mask(table)
        wanted = _places(table.select(INDEX_COLUMNS).filter(pa.array(keep)))
        named = options.filters.excluded(table).tolist()
        for number, kept in enumerate(keep.tolist(), first):
            batch, place = next(wanted) if kept else (None, 0)
            yield number, batch, place, named[number - first]


def _places(table: pa.Table) -> Iterator[tuple[RowBatch, int]]:
    return ((batch, place) for batch in in_batches(table) for place in range(len(batch)))


def fetched(plan: Plan, steps: Iterator[Step]) -> Generator[Fetched, None, None]:
    """`steps`, in order, with their pictures, or why there is none; None with those whose picture is not fetched.

    A thread does it, from the first picture that is needed until this generator ends or is dropped. It runs ahead
    across shards and parts.
    """
    options = plan.options
    if options.images not in ("auto", "fetch"):
        yield from ((step, None) for step in steps)
        return
    limits = FetchLimits.of(options.transfer, concurrency=options.ahead.concurrency)
    keep = options.ahead.cache_images
    cache = PictureCache(keep, options.ahead.cache_bytes) if keep is not None else None
    with Fetcher(limits, cache) as fetcher:
        arriving = ordered(
            steps,
            fetcher,
            url_of=lambda step: step.row.url_to_fetch,
            lookahead=options.ahead.lookahead,
            max_buffer_bytes=options.ahead.max_buffer_bytes,
        )
        with closing(arriving):
            yield from watched(arriving)


def world_size() -> int:
    """How many ranks train together, as torchrun and its like say it; 1 without them.

    Raises:
        OptionError: the variable WORLD_SIZE is no such number.
    """
    value = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not value.isdecimal() or int(value) < 1:
        raise OptionError(f"WORLD_SIZE={as_written(value)}: expected the number of ranks, 1 or more; or unset it")
    return int(value)


def shards_per_part_for(parts_read: int, world: int, near: int = ROW_GROUPS) -> int:
    """The least shards_per_part from `near` on with which every one of `world` ranks gets the same number of shards."""
    step = world // math.gcd(parts_read, world)
    return math.ceil(near / step) * step
