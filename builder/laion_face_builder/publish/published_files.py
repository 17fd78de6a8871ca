"""Write the files that are published: the index, examples with their pictures, and a small preview of both.

All are written in the form that readers from afar need: `published_form`. The index has the rows of the prepared file,
without those that are excluded, in fewer row groups.

Examples with pictures are those that `load_dataset` would give, in files of bounded size. Rows keep the index's order.
A row whose picture failed, is excluded or no longer decodes has a null image, as with on_error="null", or is left out,
as with on_error="skip"; every other picture is decoded once right before it is written. Where a file ends depends on
nothing but the row that it starts with, so that a publish that was killed goes on behind its last whole file, byte for
byte.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.errors import DiskError, NotPrepared, PictureError
from laion_face_builder.examples import parts
from laion_face_builder.examples.example import Example, Row
from laion_face_builder.examples.report import Tally
from laion_face_builder.examples.walk import MarkedRow, Plan, Position, Shard, walk
from laion_face_builder.files import (
    Fingerprint,
    digest,
    make_fingerprint,
    read_fingerprint,
    sha256_of,
    stamped,
    written_whole,
)
from laion_face_builder.images import pictures
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.faces import flat_columns
from laion_face_builder.index.filters import Filters
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import STAMP
from laion_face_builder.log import logger
from laion_face_builder.options import Options
from laion_face_builder.parquet_files import opened
from laion_face_builder.publish.manifest import Entry
from laion_face_builder.publish.published_columns import features_of
from laion_face_builder.publish.published_counts import FileCounts
from laion_face_builder.publish.published_form import in_form, index_bounds, index_writer, writer_of
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX

_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_OWN = {
    "image": _IMAGE,
    "original_width": INDEX.field("width").type,
    "original_height": INDEX.field("height").type,
    "faces_aligned": pa.bool_(),
}
#: The columns that are derived from `faces`.
FLAT = ("n_faces", "max_face_score", "max_face_size")
#: A published table with pictures: an example's columns, and the flat ones of its faces. A missing picture is a null.
EXAMPLES = pa.schema([pa.field(name, _OWN.get(name) or INDEX.field(name).type) for name in (*EXAMPLE_COLUMNS, *FLAT)])


def measured(path: Path, name: str, part: int, rows: tuple[int, int]) -> Entry:
    """Read the whole file and make its entry for the manifest.

    Args:
        name: under which the file is published.
        rows: first and stop of the index rows that it covers.

    Raises:
        BadFile: it cannot be read, or has no fingerprint.
    """
    with opened(path) as file:
        found = contents(file)
    made_from = read_fingerprint(path) or {}
    size, sha256 = path.stat().st_size, sha256_of(path)
    first, stop = rows
    return Entry(name, part, first=first, stop=stop, size=size, sha256=sha256, fingerprint=made_from, **found)


def contents(file: pq.ParquetFile) -> dict[str, Any]:
    """Read all of a published file for those fields of its entry that its rows tell, a row group at a time."""
    hasher, arrow_bytes, counts = hashlib.sha256(), 0, FileCounts()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        arrow_bytes += table.nbytes
        hasher.update(ids_bytes(table["sample_id"]))
        counts.add(table)
    return {
        "rows": file.metadata.num_rows,
        "row_groups": file.num_row_groups,
        "arrow_bytes": arrow_bytes,
        "sample_ids": hasher.hexdigest(),
        "counts": counts.as_dict(),
    }


def ids_bytes(column: pa.ChunkedArray | pa.Array) -> bytes:
    """Give sample ids as their digest takes them: little-endian int64, a null as -1."""
    values = column.fill_null(-1).to_numpy()
    return np.ascontiguousarray(values).astype("<i8").tobytes()


def columns_in(schema: pa.Schema, most: int = 40) -> str:
    """Return the names and types of the columns, in words for people."""
    said = [f"{field.name} {field.type}" for field in itertools.islice(schema, most)]
    return ", ".join(said) + (f" and {len(schema) - most} more" if len(schema) > most else "")


def published_fingerprint(index: IndexPart, options: Options, part: int) -> Fingerprint:
    """Give the prepared part's own fingerprint, with the filters if rows are left out, what is beside, and the form."""
    filters = {} if asked(options).is_empty else {"filters": asked(options).as_dict()}
    return in_form({**index.fingerprint, **_stamp_of(options, part), **filters, **beside_of(options, part)})


def asked(options: Options) -> Filters:
    """Give the filters that were asked for: what was taken down leaves whether it is asked for or not."""
    return replace(options.filters, removed=None)


def _stamp_of(options: Options, part: int) -> Fingerprint:
    stamp = dict(options.stamps).get(part)
    return {} if stamp is None else {STAMP: stamp}


def beside_of(options: Options, part: int) -> dict[str, Any]:
    """Give what of a fingerprint says which columns are published beside ours, and what they were made from."""
    if not options.tables:
        return {}
    tables = [digest(table.fingerprint(part)) for table in options.tables]
    return {"columns": features_of(options.more), "tables": tables}


def write_published(target: Path, index: IndexPart, options: Options, part: int) -> None:
    """Write those rows of the part that pass the filters to `target`. At most two of its row groups are in memory.

    Raises:
        BadFile: the index cannot be read.
    """
    filters, more = options.filters, options.more if options.tables else None
    schema = stamped(pa.schema([*INDEX, *(more or ())]), published_fingerprint(index, options, part))
    columns = filters.columns
    kept = [
        int(filters.mask(index.read(*bound, columns)).sum()) if columns else bound[1] - bound[0]
        for bound in index.row_groups
    ]
    if (filters.include, filters.exclude) != (None, None):
        logger.info("%s: %d of %d rows are left out", target.name, index.num_rows - sum(kept), index.num_rows)
    with written_whole(target) as partial, index_writer(partial, schema) as writer:
        for table in cut(_passing(index, filters, schema), schema, index_bounds(sum(kept))):
            writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))


def _passing(index: IndexPart, filters: Filters, schema: pa.Schema) -> Iterator[pa.Table]:
    columns = list(dict.fromkeys((*schema.names, *filters.columns)))
    for start, stop in index.row_groups:
        table = index.read(start, stop, columns)
        kept = table if filters.is_empty else table.filter(pa.array(filters.mask(table)))
        yield kept.select(schema.names)


def cut(tables: Iterator[pa.Table], schema: pa.Schema, bounds: list[tuple[int, int]]) -> Iterator[pa.Table]:
    """Yield the same rows, cut at `bounds`."""
    held = schema.remove_metadata().empty_table()
    for start, stop in bounds:
        while held.num_rows < stop - start:
            held = pa.concat_tables([held, next(tables)])
        yield held.slice(0, stop - start).combine_chunks()
        held = held.slice(stop - start)


@dataclass(frozen=True)
class Bounds:
    """How large row groups and files may get: bytes of pictures, rows. A file ends with the row group that fills it."""

    row_group_bytes: int = 100_000_000
    row_group_rows: int = 1000
    file_bytes: int = 1_000_000_000


def examples_fingerprint(options: Options, part: int, bounds: Bounds) -> Fingerprint:
    """Give the fingerprint of what the published files of a part with pictures are made from."""
    made_from = parts.identity(options, part)
    how: dict[str, Any] = {"filters": asked(options).as_dict(), "on_size_change": options.on_size_change}
    if options.on_error == "skip":
        how["pictures_only"] = True  # Only then: what was published without is not made anew.
    beside = beside_of(options, part)
    return in_form(make_fingerprint("examples", part=part, **made_from, **how, **beside, bounds=asdict(bounds)))


@dataclass(frozen=True)
class Group:
    """One row group: a table as `EXAMPLES`, and the index row after its last."""

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
        self._tars = options.data.tars(part)
        tally = Tally(None)
        self._counts = tally.counts
        steps = example_steps(options, part, first, tally)
        self._schema = examples_schema(options)
        self._groups = _groups(steps, rows, bounds, options.fetch.max_pixels, self._schema)
        self._next = next(self._groups, None)

    @property
    def done(self) -> bool:
        """Whether all rows are written."""
        return self._next is None

    def write(self, path: Path, fingerprint: Fingerprint) -> int:
        """Write the next file and give the index row after its last."""
        schema = stamped(self._schema, fingerprint)
        size, stop = 0, self._rows
        with written_whole(path) as partial, writer_of(partial, schema) as writer:
            while self._next is not None and size < self._bounds.file_bytes:
                group, self._next = self._next, next(self._groups, None)
                if group.table.num_rows:
                    writer.write_table(group.table.cast(schema), row_group_size=group.table.num_rows)
                size, stop = size + group.size, group.stop
            if unread := self._counts.failed[Reason.TAR_UNREADABLE]:
                raise DiskError(
                    f"{self._tars}: {unread:,} pictures cannot be read from the tars there (permission, or a disk that "
                    "fails), and none is left out for that. Put it right, and publish again: it goes on"
                )
        return stop


def example_steps(options: Options, part: int, first: int, tally: Tally) -> Iterator[MarkedRow]:
    """Yield the part's rows from `first` on, as steps that can make examples."""
    plan = Plan(replace(options, parts=(part,)), None)
    yield from walk(plan, [Shard(part, 0, 1)], Position(0, first), tally)


def checked_example(row: Row, max_pixels: int) -> Example | None:
    """Make the row's example, without its picture if that is broken, or turned by EXIF.

    None if the filters drop it, or if it has no picture and on_error is "skip".
    """
    example = row.example()
    if example is None or example["image"] is None or row.batch is None:
        return example
    try:
        found = pictures.inspect(example["image"]["bytes"], max_pixels=max_pixels)
        if found.orientation == 1:
            return example
        raise PictureError(Reason.TURNED, f"orientation {found.orientation}")
    except PictureError as error:
        is_skipped = row.maker.options.on_error == "skip"
        how = "left out, since its picture is" if is_skipped else "published without its picture:"
        logger.warning("sample %d: %s %s", example["sample_id"], how, error)
        return None if is_skipped else row.maker.without_picture(row.batch[row.place])


def examples_schema(options: Options) -> pa.Schema:
    """Return the columns of a published table with pictures: `EXAMPLES`, and those that are joined."""
    return pa.schema([*EXAMPLES, *(options.more if options.tables and options.more is not None else ())])


def as_table(examples: list[Example], schema: pa.Schema = EXAMPLES) -> pa.Table:
    """Put `examples` into a table of this schema; the flat columns are computed from the faces in these rows."""
    columns: dict[str, Any] = {
        name: pa.array([example[name] for example in examples], schema.field(name).type)
        for name in schema.names
        if name not in FLAT
    }
    columns |= zip(FLAT, flat_columns(columns["faces"]), strict=True)
    return pa.table(columns, schema=schema)


def _groups(
    steps: Iterator[MarkedRow], rows: int, bounds: Bounds, max_pixels: int, schema: pa.Schema
) -> Iterator[Group]:
    """Yield row groups within bounds; at least one, so that a part without rows is a file too."""
    held: list[Example] = []
    size, stop = 0, 0
    for step in _with_progress(steps, rows):
        example = checked_example(step.row, max_pixels)
        if example is not None:
            weight = len(example["image"]["bytes"]) if example["image"] else 0
            if held and (size + weight > bounds.row_group_bytes or len(held) >= bounds.row_group_rows):
                yield Group(as_table(held, schema), stop)
                held, size = [], 0
            held.append(example)
            size += weight
        stop = step.row.number + 1
    yield Group(as_table(held, schema), rows)


def _with_progress(steps: Iterator[MarkedRow], rows: int) -> Iterator[MarkedRow]:
    with progress.bar("pictures", rows, "row") as bar:
        for step in steps:
            bar.advance_to(step.row.number + 1)
            yield step


MOST_ROWS = 1000
_ROWS_A_GROUP = 100


def check_preview(options: Options) -> None:
    """Check that there are pictures to show.

    Raises:
        NotPrepared: no part has pictures.
    """
    if not pictured_parts(options):
        raise NotPrepared(
            f"{options.data.root}: no part has pictures to show. Run `laion-face download` first, or drop --preview"
        )


def pictured_parts(options: Options) -> list[int]:
    """List those of the parts that have pictures on disk."""
    return [part for part in options.parts if options.data.sidecar(part).exists()]


def preview_fingerprint(options: Options, rows: int) -> Fingerprint:
    """Give the fingerprint of what the preview is made from."""
    made_from = {str(part): parts.identity(options, part) for part in pictured_parts(options)}
    beside = {"columns": features_of(options.more)} if options.tables and options.more is not None else {}
    filters = asked(options).as_dict()
    return in_form(make_fingerprint("preview", rows=rows, parts=made_from, filters=filters, **beside))


def write_preview(path: Path, options: Options, rows: int, fingerprint: Fingerprint) -> None:
    """Write the first `rows` examples that have a picture; fewer if there are no more."""
    schema = stamped(examples_schema(options), fingerprint)
    examples = itertools.islice(_pictured(options, pictured_parts(options)), rows)
    with written_whole(path) as partial, writer_of(partial, schema) as writer:
        while held := list(itertools.islice(examples, _ROWS_A_GROUP)):
            writer.write_table(as_table(held, examples_schema(options)).cast(schema), row_group_size=len(held))


def _pictured(options: Options, chosen: Sequence[int]) -> Iterator[Example]:
    for part in chosen:
        for step in example_steps(options, part, 0, Tally(None)):
            example = checked_example(step.row, options.fetch.max_pixels)
            if example is not None and example["image"] is not None:
                yield example
