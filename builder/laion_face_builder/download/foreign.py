"""Look through a shard that another program wrote, whatever img2dataset's output_format was.

    webdataset  00000.tar        KEY.jpg, KEY.json and KEY.txt of each sample, and 00000.parquet beside it
    files       00000/           the same as files, and 00000.parquet beside the folder
    parquet     00000.parquet    a row a sample, with the picture in a column

Every picture is decoded once, by the same check as in fetching. What is found of each sample: its SAMPLE_ID if it was
saved, checksums of its address and of its caption, which samples without an id are found by, and where its picture
lies. A tar that was cut off gives the samples that are whole in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from laion_face_builder.download.check import ALSO_READ, CHECKED, Row, Sample, checked_row, is_made, whole_number
from laion_face_builder.download.shard_files import PICTURE_EXTENSIONS, Member, pictures_in, whole_members
from laion_face_builder.errors import BadFile
from laion_face_builder.files import stamped, written_whole
from laion_face_builder.index.removed import Removed
from laion_face_builder.log import logger
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.shown import short

ID_COLUMN = "sample_id"
#: One sample: as `check` has it, `id` null where no SAMPLE_ID was saved; XXH3 of address and caption, null where there
#: is none; `file` is what to add to the shard's name, where a picture does not lie in the shard's own file.
FOREIGN = pa.schema([*CHECKED, ("url", pa.uint64()), ("caption", pa.uint64()), ("file", pa.string())])
_FAILURES = (OSError, KeyError, pa.ArrowException, UnicodeDecodeError, MemoryError)
_ROWS = 256

Values = Mapping[str, Any]


@dataclass(frozen=True)
class LookJob:
    """A shard of somebody else's to look through.

    Attributes:
        shard: path of the tar, the folder or the Parquet file.
        out: the file to write.
        max_pixels: larger pictures fail.
        fingerprint: goes into `out`.
        removed: samples that were taken down: nothing is written of them.
    """

    shard: str
    out: str
    max_pixels: int
    fingerprint: Mapping[str, Any]
    removed: Removed = field(default_factory=Removed)

    @property
    def is_done(self) -> bool:
        """Whether `out` is there, made by a job with the same fingerprint."""
        return is_made(self.out, self.fingerprint)

    def run(self, report: object = None) -> None:
        """Look at every sample, and write `out`; workers pass `report`, which is not used.

        Raises:
            BadFile: the shard cannot be read, or nothing in it says which samples it holds.
            OSError: likewise.
        """
        schema = stamped(FOREIGN, self.fingerprint)
        how = {"compression": "zstd", "write_page_checksum": True}
        with written_whole(Path(self.out)) as partial, pq.ParquetWriter(partial, schema, **how) as writer:
            rows: list[Row] = []
            columns: set[str] = set()
            has_pictures = has_names = False
            for found in _samples(Path(self.shard)):
                columns |= found.values.keys()
                has_pictures |= found.place is not None
                if (row := _row(found, self.max_pixels)) is not None:
                    has_names = True
                    if not _is_removed(found, row, self.removed):
                        rows.append(row)
                if len(rows) == _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            if has_pictures and not has_names:
                raise _nameless(Path(self.shard), columns)


@dataclass(frozen=True)
class _Found:
    """A sample: what is said of it, names in lower case, where its picture lies, and its bytes; None without one."""

    values: Values
    place: Member | None = None
    data: bytes | None = None
    file: str | None = None


def _row(found: _Found, max_pixels: int) -> Row | None:
    """Look at one sample; None if nothing says which it is."""
    sample = Sample.of(found.values, ID_COLUMN)
    known = {"url": _checksum(found.values.get("url")), "caption": _checksum(_caption(found.values))}
    if sample.id is None and not any(known.values()):
        return None
    return {**checked_row(sample, found.place, found.data, max_pixels), **known, "file": found.file}


def _is_removed(found: _Found, row: Row, removed: Removed) -> bool:
    if not removed:
        return False
    if row["id"] is not None and removed.names_ids(pa.array([row["id"]], pa.int64()))[0]:
        return True
    if isinstance(url := found.values.get("url"), str) and removed.names_address(url):
        return True
    known = filter(None, (row.get("sha256"), row.get("fetched_sha256")))
    return found.data is not None and removed.names_picture(found.data, known)


def _caption(values: Values) -> Any:
    return values.get("caption", values.get("text"))


def _checksum(text: object) -> int | None:
    return checksum_of(text) if isinstance(text, str) and text else None


def checksum_of(text: str) -> int:
    """Return the XXH3 of an address or a caption, by which the index's are compared with a folder's."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="replace"))


def is_table_of_pictures(path: Path) -> bool:
    """Say whether a Parquet file has pictures in it, and not only what is said of those in a tar or a folder."""
    try:
        with OpenParquet(path) as file:
            return _picture_column(file.schema_arrow) is not None
    except _FAILURES:
        return False


def _picture_column(schema: pa.Schema) -> str | None:
    for column in schema:
        is_binary = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        if column.name.lower() in PICTURE_EXTENSIONS and is_binary:
            return str(column.name)
    return None


def _samples(shard: Path) -> Iterator[_Found]:
    if shard.suffix == ".parquet":
        yield from _of_table(shard)
    elif shard.is_dir():
        yield from _of_folder(shard)
    else:
        yield from _of_tar(shard)


def _of_tar(path: Path) -> Iterator[_Found]:
    members, broken = whole_members(path)
    if broken is not None:
        if not members:
            raise broken
        logger.warning("%s: %s; what is whole before that is used", path, broken.found)
    with path.open("rb") as tar:
        yield from _keyed(path, members, lambda member: os.pread(tar.fileno(), member.length, member.offset))


def _of_folder(path: Path) -> Iterator[_Found]:
    with os.scandir(path) as entries:
        files = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
    members = [Member(name, 0, size) for name, size in files]
    for found in _keyed(path, members, lambda member: _content(path / member.name)):
        yield found if found.place is None else _Found(found.values, found.place, found.data, found.place.name)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it vanished, or may not be read: no picture


def _keyed(path: Path, members: list[Member], read: Callable[[Member], bytes]) -> Iterator[_Found]:
    """Yield the samples of a tar or a folder: those that the table beside it tells of, and those it has besides."""
    found = pictures_in(members)
    texts = {member.key: member for member in members if member.extension == "txt"}
    documents = {member.key: member for member in members if member.extension == "json"}
    told = dict(_told(path.with_suffix(".parquet")))
    for key in dict.fromkeys([*told, *found, *documents]):
        values: Values = told.get(key, {})
        if not _names_it(values) and key in documents:
            values = {**values, **_of_document(read(documents[key]))}
        if not _names_it(values) and key in texts:
            values = {**values, "caption": read(texts[key]).decode(errors="replace")}
        place = found.get(key)
        yield _Found(values, place, None if place is None else read(place))


def _names_it(values: Values) -> bool:
    return whole_number(values.get(ID_COLUMN)) is not None or bool(values.get("url"))


def _nameless(path: Path, columns: set[str]) -> BadFile:
    return BadFile(
        path,
        found=f"pictures of samples without names (columns: {short(', '.join(sorted(columns)) or 'none', 200)})",
        expected="SAMPLE_ID, url or caption in the .json of its samples, or in the .parquet beside it",
        way_out="Download with --save_additional_columns that name SAMPLE_ID, or keep img2dataset's .json files.",
    )


def _told(table: Path) -> Iterator[tuple[str, Values]]:
    """Yield what the table beside a shard says of each sample, by key; nothing if it cannot be read."""
    try:
        with ExitStack() as stack:
            file = stack.enter_context(OpenParquet(table))
            columns = _wanted(file.schema_arrow, "key")
            if "key" not in columns:
                return
            rows = file.read(columns=list(columns.values())).select(list(columns.values()))
        for row in rows.rename_columns(list(columns)).to_pylist():
            if isinstance(key := row.pop("key"), str):
                yield key, row
    except _FAILURES:
        return  # the .json files say the same of what is there


def _wanted(schema: pa.Schema, *more: str) -> dict[str, str]:
    """Return the columns that are read, by their names in lower case; of doubled ones the first."""
    names = {name.lower(): name for name in reversed(schema.names) if schema.names.count(name) == 1}
    wanted = (*more, ID_COLUMN, "url", "caption", "text", "error_message", *ALSO_READ)
    return {name: names[name] for name in wanted if name in names}


def _of_document(text: bytes) -> Values:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {name.lower(): value for name, value in values.items()} if isinstance(values, dict) else {}


def _of_table(path: Path) -> Iterator[_Found]:
    """Yield the samples of a table of pictures. A picture's place is its row, and the column it is in."""
    try:
        with OpenParquet(path) as file:
            pictures, columns = _picture_column(file.schema_arrow), _wanted(file.schema_arrow)
            if pictures is None or not columns:
                raise _nameless(path, set(file.schema_arrow.names))
            number = 0
            for batch in file.iter_batches(_ROWS, columns=[*columns.values(), pictures]):
                for row in batch.to_pylist():
                    data = row.pop(pictures)
                    values = {name: row[column] for name, column in columns.items()}
                    place = None if data is None else Member(pictures, number, len(data))
                    yield _Found(values, place, data, pictures if place else None)
                    number += 1
    except _FAILURES as error:
        what = f"no readable table ({short(error, 200)})"
        raise BadFile(path, found=what, expected="a whole Parquet file", way_out="Download it again.") from error
