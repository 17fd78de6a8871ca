"""Write the pieces of one shard: a folder, a tar, a list or a table, which is there whole or not at all.

OUT/
  part-00000-00012/                        "files": a folder for each shard
    2130100001234.jpg                        the picture, in the format that it has
    2130100001234.txt                        its caption
    2130100001234.condition.png              what is drawn of it, if anything is
  part-00000-00012.tar                     "webdataset": the same files and KEY.json, pictures always as .jpg
  part-00000-00012.jsonl                   "jsonl": a line for each example
  part-00000-00012.parquet                 "parquet": a row for each piece, pictures in it
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from laion_face_builder.download.shard_files import ShardTar
from laion_face_builder.export.pieces import Piece
from laion_face_builder.files import disk_errors, put_in_place, written_whole
from laion_face_builder.images.stripping import EXTENSIONS
from laion_face_builder.options import Options
from laion_face_builder.options.export_options import FILES, JSONL, PARQUET, WEBDATASET, ExportOptions
from laion_face_builder.publish.published_form import writer_of
from laion_face_builder.schema import example_features

#: What a condition picture's name has after the sample's.
CONDITION = "condition.png"
#: Rows and bytes of pictures that a table holds before they are written as a row group.
_GROUP_ROWS, _GROUP_BYTES = 1000, 64_000_000


class ShardSink(Protocol):
    """Takes the pieces of one shard."""

    def add(self, piece: Piece) -> Mapping[str, Any]:
        """Write a piece, and return what lists say of it: the paths of its files in OUT, its caption, its columns."""
        ...


def shard_path(out: Path, layout: str, name: str) -> Path:
    """Return the file, or the folder, of a shard."""
    return out / (name + {FILES: "", WEBDATASET: ".tar", JSONL: ".jsonl", PARQUET: ".parquet"}[layout])


def open_sink(out: Path, name: str, how: ExportOptions, options: Options) -> AbstractContextManager[ShardSink]:
    """Open the sink of a shard; when the block ends well, what it wrote is in its place, in one step.

    Raises:
        DiskError: it cannot be written.
    """
    path = shard_path(out, how.layout, name)
    if how.layout == FILES:
        return _folder(path)
    if how.layout == WEBDATASET:
        return _tar(path, how)
    return _lines(path) if how.layout == JSONL else _table(path, how, options)


def discard(path: Path) -> None:
    """Remove a shard, and what a killed writer left of it."""
    for left in (path, *path.parent.glob(f".{path.name}.*partial")):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


class _FolderSink:
    def __init__(self, partial: Path, name: str) -> None:
        self._partial, self._name = partial, name

    def add(self, piece: Piece) -> Mapping[str, Any]:
        paths = {"file_name": self._write(f"{piece.name}.{piece.extension}", piece.picture or b"")}
        self._write(f"{piece.name}.txt", piece.caption.encode(errors="replace"))
        if piece.condition is not None:
            paths["conditioning_image_file_name"] = self._write(f"{piece.name}.{CONDITION}", piece.condition)
        return {**paths, "text": piece.caption, **piece.values}

    def _write(self, name: str, data: bytes) -> str:
        (self._partial / name).write_bytes(data)
        return f"{self._name}/{name}"


@contextmanager
def _folder(path: Path) -> Iterator[ShardSink]:
    discard(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path, partial):
        partial.mkdir(parents=True)
        try:
            yield _FolderSink(partial, path.name)
            files = list(partial.iterdir())
            for file in files:  # once all are written: most are on the disk by then
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if files:
                put_in_place(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class _TarSink:
    def __init__(self, tar: ShardTar, how: ExportOptions) -> None:
        self._tar, self._how, self.count = tar, how, 0

    def add(self, piece: Piece) -> Mapping[str, Any]:
        self.count += 1
        values = {**piece.values, "caption": piece.caption}
        more = {} if piece.condition is None else {CONDITION: piece.condition}
        self._tar.write(piece.name, piece.picture or b"", json_ready(values), piece.caption, more)
        return values


@contextmanager
def _tar(path: Path, how: ExportOptions) -> Iterator[ShardSink]:
    discard(path)
    with _written_if_any(path) as (partial, keep):
        # Readers of such tars want every sample to have the same files, whatever the bytes are: so does img2dataset.
        extension = how.crop_format if how.of_faces else EXTENSIONS["JPEG"]
        tar = ShardTar(partial, extension, 0)
        try:
            sink = _TarSink(tar, how)
            yield sink
            tar.finish()
            keep.append(sink.count)
        finally:
            tar.close()


class _LinesSink:
    def __init__(self, file: Any) -> None:
        self._file, self.count = file, 0

    def add(self, piece: Piece) -> Mapping[str, Any]:
        self.count += 1
        values = {"caption": piece.caption, **piece.values}
        self._file.write(line_of(values))
        return values


@contextmanager
def _lines(path: Path) -> Iterator[ShardSink]:
    discard(path)
    with _written_if_any(path) as (partial, keep), partial.open("w", encoding="utf-8", errors="replace") as file:
        sink = _LinesSink(file)
        yield sink
        keep.append(sink.count)


class _TableSink:
    def __init__(self, partial: Path, schema: pa.Schema) -> None:
        self._partial, self._schema = partial, schema
        self._held: list[dict[str, Any]] = []
        self._size = self.count = 0
        self._writer: Any = None

    def add(self, piece: Piece) -> Mapping[str, Any]:
        row = {"image": _image(piece.picture, f"{piece.name}.{piece.extension}"), "caption": piece.caption}
        if "conditioning_image" in self._schema.names:
            row["conditioning_image"] = _image(piece.condition, f"{piece.name}.{CONDITION}")
        self._held.append({**row, **piece.values})
        self._size += len(piece.picture or b"") + len(piece.condition or b"")
        self.count += 1
        if len(self._held) >= _GROUP_ROWS or self._size >= _GROUP_BYTES:
            self.flush()
        return row

    def flush(self) -> None:
        if self._writer is None:
            self._schema = _with_others(self._schema, self._held)
            self._writer = writer_of(self._partial, self._schema)
        if self._held:
            table = pa.Table.from_pylist(self._held, schema=self._schema)
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._held, self._size = [], 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def _table(path: Path, how: ExportOptions, options: Options) -> Iterator[ShardSink]:
    discard(path)
    with _written_if_any(path) as (partial, keep):
        table = _TableSink(partial, _schema(how, options))
        try:
            yield table
            table.flush()
        finally:
            table.close()
        keep.append(table.count)


def _schema(how: ExportOptions, options: Options) -> pa.Schema:
    """Return the columns of a table as `datasets` knows them, so that it sees pictures as pictures."""
    from datasets import Features, Image, Value

    features = example_features(blur_faces=options.blur_faces, mode=options.mode)
    own = {"image": features.pop("image")}
    if how.draw is not None:
        own["conditioning_image"] = Image()
    if how.of_faces:
        features["face"] = Value("int32")
    return Features({**own, **features}).arrow_schema


def _with_others(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """Add the columns that examples have beyond ours, of the types of their first values; text if there are none."""
    from datasets import Features

    features = Features.from_arrow_schema(schema)
    for name in (name for row in rows[:1] for name in row if name not in schema.names):
        kind = pa.array([row.get(name) for row in rows]).type
        column = pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind)])
        features.update(Features.from_arrow_schema(column))
    return Features(features).arrow_schema


def _image(data: bytes | None, name: str) -> dict[str, Any] | None:
    return None if data is None else {"bytes": data, "path": name}


@contextmanager
def _written_if_any(path: Path) -> Iterator[tuple[Path, list[int]]]:
    """Yield a path to write to, and a list for how many pieces were written: none leaves no file, as others expect."""
    counts: list[int] = []
    try:
        with written_whole(path) as partial:
            yield partial, counts
            if not any(counts):
                raise _NothingToWrite
    except _NothingToWrite:
        pass


class _NothingToWrite(Exception):
    """No piece was written: there is to be no file."""


def json_ready(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON has them: what it does not know (dates, bytes of others' columns) as text."""
    ready: dict[str, Any] = json.loads(line_of(values))
    return ready


def line_of(values: Mapping[str, Any]) -> str:
    """Return the values as a line of JSON, in the characters that they have."""
    try:
        return json.dumps(values, ensure_ascii=False, default=str, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(values), ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """Return the value with null for what is no number, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
