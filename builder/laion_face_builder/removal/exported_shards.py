"""Look into the shards of an export, and write them again without some samples, in each of its layouts."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.download.rewriting import copy_tar
from laion_face_builder.download.shard_files import Member, read_members
from laion_face_builder.errors import BadFile
from laion_face_builder.export.export_ledger import FOLDER, ExportCounts
from laion_face_builder.export.shard_sinks import CONDITION, shard_path
from laion_face_builder.files import written_whole
from laion_face_builder.index.removed import Removed
from laion_face_builder.options.export_options import FILES, JSONL, PARQUET, WEBDATASET
from laion_face_builder.parquet_files import opened
from laion_face_builder.publish.published_form import writer_of

#: Rows with pictures are looked at so many at a time.
_ROWS_AT_ONCE = 256
#: And without: each host is hashed once for so many.
_LINES_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class ExportedSample:
    """What is known of a piece: whose it is, and its picture if that was looked at."""

    sample_id: int
    url: str | None
    picture: bytes | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], picture: bytes | None = None) -> ExportedSample:
        """Return that of a line, or of a row."""
        return cls(int(values["sample_id"]), values.get("url"), picture)

    def has_named_picture(self, removed: Removed) -> bool:
        """Say whether its picture was looked at, and is named."""
        data = self.picture
        return data is not None and removed.names_picture(data, [hashlib.sha256(data).hexdigest()])


def named_among(
    samples: Iterable[ExportedSample], removed: Removed, at_once: int = _LINES_AT_ONCE
) -> Iterator[ExportedSample]:
    """Yield those samples that are named, by id, address, host or picture; a batch of `at_once` is in memory."""
    left = iter(samples)
    while batch := list(itertools.islice(left, at_once)):
        ids, urls = [one.sample_id for one in batch], [one.url for one in batch]
        named = removed.mask(pa.table({"sample_id": pa.array(ids, pa.int64()), "url": pa.array(urls, pa.string())}))
        yield from (one for one, is_it in zip(batch, named, strict=True) if is_it or one.has_named_picture(removed))


def named_samples(shard: ExportedShard, removed: Removed) -> list[ExportedSample]:
    """Return those samples of a shard that are named, one of each id, without their pictures."""
    with_pictures = removed.has_pictures and shard.layout != JSONL
    named = named_among(
        shard.samples(with_pictures=with_pictures), removed, _ROWS_AT_ONCE if with_pictures else _LINES_AT_ONCE
    )
    return list({one.sample_id: replace(one, picture=None) for one in named}.values())


@dataclass(frozen=True)
class ExportedShard:
    """A shard of the export in the folder `out`, in whichever layout; it may have no file, or not be whole."""

    out: Path
    name: str
    layout: str

    @property
    def path(self) -> Path:
        """Its file or folder."""
        return shard_path(self.out, self.layout, self.name)

    @property
    def list_path(self) -> Path:
        """What the lists say of it, for files."""
        return self.out / FOLDER / f"{self.name}.list"

    def samples(self, *, with_pictures: bool) -> Iterator[ExportedSample]:
        """Yield what each of its pieces is of.

        Args:
            with_pictures: the pictures' bytes too, which are as they were exported.

        Raises:
            BadFile: it cannot be read.
        """
        if self.layout == FILES:
            yield from self._in_folder(with_pictures)
        elif not self.path.exists():
            return
        elif self.layout == JSONL:
            yield from map(ExportedSample.of, _lines_of(self.path))
        elif self.layout == WEBDATASET:
            yield from self._in_tar(with_pictures)
        else:
            yield from self._in_table(with_pictures)

    def take_out(self, gone: Collection[int]) -> None:
        """Write it again without the samples with these ids; if nothing stays, there is no file.

        The order is such that, killed anywhere, it is found again what there is left to do.
        """
        if self.layout == FILES:
            for path in list(self.path.iterdir()) if self.path.is_dir() else []:
                if _id_of(path.name) in gone:
                    path.unlink()
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()
            if self.list_path.exists():
                _write_lines(self.list_path, gone, keep_empty=True)
        elif self.layout == JSONL:
            _write_lines(self.path, gone)
        elif self.layout == WEBDATASET:
            _write_if_any(self.path, lambda partial: copy_tar_without(self.path, partial, gone))
        else:
            _write_if_any(self.path, lambda partial: _copy_table_without(self.path, partial, gone))

    @property
    def pieces(self) -> int:
        """How many pieces are in it."""
        if self.layout == FILES:
            return _count_lines(self.list_path) if self.list_path.exists() else 0
        if not self.path.exists():
            return 0
        if self.layout == PARQUET:
            with opened(self.path) as file:
                return int(file.metadata.num_rows)
        if self.layout == JSONL:
            return _count_lines(self.path)
        return sum(member.extension == "json" for member in read_members(self.path))

    def counted(self) -> ExportCounts:
        """Count pictures, pieces and bytes that are in it."""
        ids = {sample.sample_id for sample in self.samples(with_pictures=False)}
        return ExportCounts(pictures=len(ids), pieces=self.pieces, bytes=sum(self._sizes()))

    def _sizes(self) -> Iterator[int]:
        """Yield the sizes of its pictures, in bytes."""
        if not self.path.exists():
            return
        if self.layout == FILES:
            yield from (path.stat().st_size for path in self.path.iterdir() if path.suffix != ".txt")
        elif self.layout == WEBDATASET:
            yield from (one.length for one in read_members(self.path) if one.extension not in ("txt", "json"))
        elif self.layout == PARQUET:
            with opened(self.path) as file:
                names = [name for name in ("image", "conditioning_image") if name in file.schema_arrow.names]
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
                    for name in names:
                        lengths = pc.binary_length(batch[name].field("bytes"))
                        yield int(pc.sum(lengths).as_py() or 0)

    def _in_folder(self, with_pictures: bool) -> Iterator[ExportedSample]:
        known: set[int] = set()
        for values in _lines_of(self.list_path) if self.list_path.exists() else ():
            path = self.out / values["file_name"]
            known.add(int(values["sample_id"]))
            yield ExportedSample.of(values, path.read_bytes() if with_pictures and path.exists() else None)
        for path in self.path.iterdir() if self.path.is_dir() else ():  # of a shard that the ledger does not know
            number = _id_of(path.name)
            if number is not None and number not in known:
                yield ExportedSample(number, None)

    def _in_tar(self, with_pictures: bool) -> Iterator[ExportedSample]:
        members = read_members(self.path)
        pictures = {one.key: one for one in members if one.extension not in ("json", "txt", CONDITION)}
        with self.path.open("rb") as file:

            def bytes_of(member: Member) -> bytes:
                file.seek(member.offset)
                return file.read(member.length)

            for member in members:
                if member.extension == "json":
                    picture = pictures.get(member.key) if with_pictures else None
                    yield ExportedSample.of(
                        json.loads(bytes_of(member)), None if picture is None else bytes_of(picture)
                    )

    def _in_table(self, with_pictures: bool) -> Iterator[ExportedSample]:
        columns = ["sample_id", "url", *(["image"] if with_pictures else [])]
        with opened(self.path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    yield ExportedSample.of(row, (row.get("image") or {}).get("bytes"))


def _id_of(name: str) -> int | None:
    """Return the sample id in the name of a piece's file; None if it is no such name."""
    key = name.partition(".")[0]
    number = key if key.removeprefix("-").isdecimal() else key.rpartition("-")[0]
    return int(number) if number.removeprefix("-").isdecimal() else None


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def _lines_of(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise BadFile(
                    f"{path}:{number}",
                    found="no JSON",
                    expected="what `laion-face export` wrote",
                    way_out="Remove the shard and its file in __export__, and export again.",
                ) from error


def _write_lines(path: Path, gone: Collection[int], *, keep_empty: bool = False) -> None:
    def copy(partial: Path) -> bool:
        is_any = False
        with path.open(encoding="utf-8", newline="") as lines, partial.open("w", encoding="utf-8", newline="") as kept:
            for line in lines:
                if int(json.loads(line)["sample_id"]) not in gone:
                    kept.write(line)
                    is_any = True
        return is_any or keep_empty

    _write_if_any(path, copy)


def _write_if_any(path: Path, copy: Callable[[Path], bool]) -> None:
    """Write a file anew; remove it if `copy` says that nothing is left in it."""
    is_any = False
    with written_whole(path) as partial:
        is_any = copy(partial)
    if not is_any:
        path.unlink()


def copy_tar_without(source: Path, target: Path, gone: Collection[int]) -> bool:
    """Copy a tar, member by member as they are, without those of some sample ids; return whether any is left."""
    keys = {member.key for member in read_members(source)}
    return bool(copy_tar(source, target, {key for key in keys if _id_of(key) in gone}))


def _copy_table_without(source: Path, target: Path, gone: Iterable[int]) -> bool:
    is_any, ids = False, pa.array(list(gone), pa.int64())
    with pq.ParquetFile(source) as file, writer_of(target, file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            kept = table.filter(pc.invert(pc.is_in(table["sample_id"], value_set=ids)))
            if kept.num_rows:
                writer.write_table(kept, row_group_size=kept.num_rows)
                is_any = True
    return is_any
