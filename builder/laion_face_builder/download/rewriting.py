"""Write a shard once more without some of its samples' files; the others keep every byte, and nothing is fetched.

FOLDER/
  _tmp/clean-00003/       a shard that is being written
  _clean-00003/           it is whole: its files go into their places one by one, whoever comes next goes on with that
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.download.plan import PartFiles
from laion_face_builder.download.shard_files import (
    BLOCK,
    ShardFiles,
    end_mark,
    read_members,
    remove_half_written,
)
from laion_face_builder.files import put_in_place, stamped, written_whole

_CHECKED = re.compile(r"\d+-\d{5,}\.parquet")
#: Of a shard's parquet, as `shard_writer` has it.
_ROWS_OF_A_GROUP = 1_000
_COPIED_AT_ONCE = 1 << 20


@contextmanager
def written_again(files: PartFiles, shard: ShardFiles) -> Iterator[ShardFiles]:
    """Yield where to write the files of a shard that change; when the block ends well they take their places.

    A file called as in `PartFiles.checked` goes there, between tar and stats. Nobody else may write to the folder.
    """
    remove_half_written(shard.folder)
    name = f"clean-{shard.number:05d}"
    made = ShardFiles(shard.folder / "_tmp" / name, shard.number)
    made.folder.mkdir(parents=True)
    yield made
    whole = shard.folder / f"_{name}"
    made.folder.rename(whole)
    remove_half_written(shard.folder)
    _put_in_place(files, whole)


def finish_rewriting(files: PartFiles) -> None:
    """Move the files of shards that a killed run had written again into their places."""
    for number in range(files.rounds_started() + 1):
        for whole in sorted(files.tars(number).glob("_clean-*")):
            _put_in_place(files, whole)


def _put_in_place(files: PartFiles, whole: Path) -> None:
    for file in sorted(whole.iterdir(), key=lambda file: (file.suffix == ".json", file.name)):  # the stats last
        folder = files.checked if _CHECKED.fullmatch(file.name) else whole.parent
        put_in_place(file, folder / file.name)
    whole.rmdir()


def copy_tar(source: Path, target: Path, without: Collection[str]) -> dict[int, int]:
    """Copy a tar without the members of the samples with these keys; return old offset -> new of the others' members.

    Headers and contents are copied as they are.

    Raises:
        BadFile: the tar is not whole.
    """
    moved: dict[int, int] = {}
    stop = written = 0
    with source.open("rb") as read, target.open("wb") as write:
        for member in read_members(source):
            start, stop = stop, member.offset + -(-member.length // BLOCK) * BLOCK
            if member.key in without:
                continue
            moved[member.offset] = written + member.offset - start
            _copy(read.fileno(), write.fileno(), start, stop)
            written += stop - start
        write.write(end_mark(written))
    return moved


def _copy(source: int, target: int, start: int, stop: int) -> None:
    while start < stop:
        piece = os.pread(source, min(_COPIED_AT_ONCE, stop - start), start)
        view = memoryview(piece)
        while view:
            view = view[os.write(target, view) :]
        start += len(piece)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a shard's parquet."""
    pq.write_table(table, path, row_group_size=_ROWS_OF_A_GROUP, write_page_checksum=True)


def write_checked(table: pa.Table, path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write a shard's rows of the sidecar."""
    stamp = stamped(table.schema, fingerprint)
    with written_whole(path) as partial:
        pq.write_table(table.cast(stamp), partial, compression="zstd", write_page_checksum=True)
