"""Write a part with its pictures as Parquet files of bounded size: the examples that `load_dataset` would give.

Rows keep the index's order. A row whose picture failed, is excluded or no longer decodes has a null image, as with
on_error="null"; every other picture is decoded once right before it is written. Where a file ends depends on nothing
but the row that it starts with, so that a publish that was killed goes on behind its last whole file, byte for byte.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from laion_face_builder import progress
from laion_face_builder.errors import PictureError
from laion_face_builder.examples import parts
from laion_face_builder.examples.example import Example, Row
from laion_face_builder.examples.report import Tally
from laion_face_builder.examples.rows import Plan, Position, Shard, Step, walk
from laion_face_builder.files import Fingerprint, make_fingerprint, stamped, written_whole
from laion_face_builder.images import pictures
from laion_face_builder.index.faces import flat_columns
from laion_face_builder.options import Options
from laion_face_builder.publish.tables import EXAMPLES, FLAT, writer_of

logger = logging.getLogger("laion_face")


@dataclass(frozen=True)
class Bounds:
    """How large row groups and files may get: bytes of pictures, rows. A file ends with the row group that fills it."""

    row_group_bytes: int = 100_000_000
    row_group_rows: int = 1000
    file_bytes: int = 1_000_000_000


def examples_fingerprint(options: Options, part: int, bounds: Bounds) -> Fingerprint:
    """Give the fingerprint of what the published files of a part with pictures are made from."""
    made_from = parts.identity(options, part)
    how = {"filters": options.filters.as_dict(), "on_size_change": options.on_size_change}
    return make_fingerprint("examples", part=part, **made_from, **how, bounds=asdict(bounds))


@dataclass(frozen=True)
class Group:
    """One row group: a table as `tables.EXAMPLES`, and the index row after its last."""

    table: pa.Table
    stop: int

    @property
    def size(self) -> int:
        """Size as Arrow, in bytes, nearly all of them pictures."""
        return int(self.table.nbytes)


class PartExamples:
    """The rows of a part from `first` on, to be written into one file after the other.

    Args:
        first: an index row; rows before it are not read.
        rows: how many rows the index part has.
    """

    def __init__(self, options: Options, part: int, first: int, rows: int, bounds: Bounds) -> None:
        self._part, self._rows, self._bounds = part, rows, bounds
        steps = example_steps(options, part, first)
        self._groups = _groups(steps, rows, bounds, options.transfer.max_pixels)
        self._next = next(self._groups, None)

    @property
    def done(self) -> bool:
        """Whether all rows are written."""
        return self._next is None

    def write(self, path: Path, fingerprint: Fingerprint) -> int:
        """Write the next file and give the index row after its last."""
        schema = stamped(EXAMPLES, fingerprint)
        size, stop = 0, self._rows
        with written_whole(path) as partial, writer_of(partial, schema) as writer:
            while self._next is not None and size < self._bounds.file_bytes:
                group, self._next = self._next, next(self._groups, None)
                if group.table.num_rows:
                    writer.write_table(group.table.cast(schema), row_group_size=group.table.num_rows)
                size, stop = size + group.size, group.stop
        return stop


def example_steps(options: Options, part: int, first: int) -> Iterator[Step]:
    """Yield the part's rows from `first` on, as steps that can make examples."""
    plan = Plan(replace(options, parts=(part,), on_error="null"), None)
    yield from walk(plan, [Shard(part, 0, 1)], Position(0, first), Tally(None))


def checked_example(row: Row, max_pixels: int) -> Example | None:
    """Make the row's example; None if the filters drop it. A picture that is broken, or turned by EXIF, is left out."""
    example = row.example()
    if example is None or example["image"] is None or row.batch is None:
        return example
    try:
        found = pictures.inspect(example["image"]["bytes"], max_pixels=max_pixels)
        if found.orientation == 1:
            return example
        raise PictureError("turned", f"orientation {found.orientation}")
    except PictureError as error:
        logger.warning("sample %d: published without its picture: %s", example["sample_id"], error)
        return row.maker.without_picture(row.batch[row.place])


def as_table(examples: list[Example]) -> pa.Table:
    """Put `examples` into a table as `tables.EXAMPLES`; the flat columns are computed from the faces in these rows."""
    columns: dict[str, Any] = {
        name: pa.array([example[name] for example in examples], EXAMPLES.field(name).type)
        for name in EXAMPLES.names
        if name not in FLAT
    }
    columns |= zip(FLAT, flat_columns(columns["faces"]), strict=True)
    return pa.table(columns, schema=EXAMPLES)


def _groups(steps: Iterator[Step], rows: int, bounds: Bounds, max_pixels: int) -> Iterator[Group]:
    """Yield row groups within bounds; at least one, so that a part without rows is a file too."""
    held: list[Example] = []
    size, stop = 0, 0
    for step in _with_progress(steps, rows):
        example = checked_example(step.row, max_pixels)
        if example is not None:
            weight = len(example["image"]["bytes"]) if example["image"] else 0
            if held and (size + weight > bounds.row_group_bytes or len(held) >= bounds.row_group_rows):
                yield Group(as_table(held), stop)
                held, size = [], 0
            held.append(example)
            size += weight
        stop = step.row.number + 1
    yield Group(as_table(held), rows)


def _with_progress(steps: Iterator[Step], rows: int) -> Iterator[Step]:
    with progress.bar("pictures", rows, "row") as bar:
        for step in steps:
            bar.advance_to(step.row.number + 1)
            yield step
