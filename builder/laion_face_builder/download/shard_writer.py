"""Write a shard's files, laid out as img2dataset's; they get their final names only once they are whole.

FOLDER/
  _tmp/00003.1f2e3d4c/            a shard that is being written; nobody reads what is in there
  00003.tar  00003.parquet  00003_stats.json

The tar holds the successes alone. The parquet, and our rows of the sidecar, have the failures too. The stats come last.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from laion_face_builder.download.check import CHECKED, DETAIL_CHARACTERS
from laion_face_builder.download.reencoding import Stored
from laion_face_builder.download.shard_files import ShardFiles, ShardTar
from laion_face_builder.download.task import ShardTask
from laion_face_builder.errors import PictureError
from laion_face_builder.files import put_in_place, stamped, written_whole
from laion_face_builder.images.reasons import Reason, Whose

#: Digits of a shard's number, as img2dataset's default.
_SHARD_DIGITS = 5
#: Rows of the parquet that are written at a time, as one row group.
_ROWS_AT_ONCE = 1_000
#: What img2dataset adds to the columns that it was given, in its order.
_ADDED = (
    *(("key", pa.string()), ("status", pa.string()), ("error_message", pa.string())),
    *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
    ("sha256", pa.string()),
)
#: Failures of pictures that were fetched; they count as failed_to_resize.
_OF_PICTURES = frozenset(reason for reason in Reason if reason.whose is Whose.PICTURES)


class ShardWriter:
    """Writes one shard. `finish` puts it in its place; without that nothing of it is left once it is closed.

    Args:
        task: which shard.
        schema: of the values that are written.
    """

    def __init__(self, task: ShardTask, schema: pa.Schema) -> None:
        self._task, self._began = task, time.time()
        final = task.place.files
        folder = final.folder / "_tmp" / f"{final.number:05d}.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        self._files = ShardFiles(folder, final.number)
        for name, kind in _ADDED:
            schema = schema.append(pa.field(name, kind))
        self._tar = ShardTar(self._files.tar, task.options.encode_format, int(self._began))
        self._table = _Table(self._files.parquet, schema)
        self._rows: list[dict[str, Any]] = []
        self._messages: Counter[str] = Counter()
        self._counts = {"successes": 0, "failed_to_download": 0, "failed_to_resize": 0}

    def write(self, position: int, values: dict[str, Any], end: Stored | PictureError) -> None:
        """Add a sample.

        Args:
            position: in the shard.
            values: as `plan.listed` has them.
            end: what is kept of it, or why nothing is.
        """
        digits = math.ceil(math.log10(self._task.options.samples_per_shard))
        key = f"{self._files.number * 10**digits + position:0{_SHARD_DIGITS + digits}d}"
        said = self._failure(end) if isinstance(end, PictureError) else self._success(end)
        self._messages[said.pop("counted")] += 1
        meta = {**values, "key": key, **dict.fromkeys(name for name, _ in _ADDED[1:]), **said}
        row = {"id": values["row"], **_sidecar_row(end)}
        if isinstance(end, Stored):
            member = self._tar.write(key, end.data, meta, values["caption"])
            row |= {"offset": member.offset, "length": member.length}
        self._table.write(meta)
        self._rows.append(row)

    def _failure(self, error: PictureError) -> dict[str, Any]:
        status = "failed_to_resize" if error.reason in _OF_PICTURES else "failed_to_download"
        self._counts[status] += 1
        return {"counted": error.reason, "status": status, "error_message": str(error)[:DETAIL_CHARACTERS]}

    def _success(self, kept: Stored) -> dict[str, Any]:
        self._counts["successes"] += 1
        sizes = dict(
            zip(("width", "height", "original_width", "original_height"), kept.size + kept.fetched, strict=True)
        )
        return {"counted": "success", "status": "success", **sizes, "sha256": kept.fetched_sha256}

    def finish(self) -> None:
        """Move the shard into its place, and write its rows of the sidecar."""
        self._tar.finish()
        self._table.finish()
        self._files.stats.write_text(json.dumps(self._stats(), indent=4), encoding="utf-8")
        job, final = self._task.place.check_job(self._files), self._task.place.files
        assert job is not None, "all of its files have just been written"  # noqa: S101 - says it to the type checker
        table = pa.Table.from_pylist(self._rows, schema=stamped(CHECKED, job.fingerprint))
        final.remove()
        put_in_place(self._files.tar, final.tar)
        put_in_place(self._files.parquet, final.parquet)
        with written_whole(self._task.place.part.checked_tar(self._task.place.round, final.number)) as partial:
            pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        put_in_place(self._files.stats, final.stats)

    def _stats(self) -> dict[str, Any]:
        ended = time.time()
        times = {"duration": ended - self._began, "start_time": self._began, "end_time": ended}
        return {"count": len(self._rows), **self._counts, **times, "status_dict": self._messages}

    def close(self) -> None:
        """Close the files, and remove all that was not moved into its place."""
        for thing in (self._tar, self._table):
            with suppress(OSError):  # The file is removed anyway, or closed already.
                thing.close()
        shutil.rmtree(self._files.folder, ignore_errors=True)


class _Table:
    """The shard's parquet, a row for every sample."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._waiting = schema, list[dict[str, Any]]()
        self._writer = pq.ParquetWriter(path, schema, write_page_checksum=True)

    def write(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._put_together()

    def _put_together(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._waiting, self._schema))
        self._waiting.clear()

    def finish(self) -> None:
        if self._waiting:
            self._put_together()
        self.close()

    def close(self) -> None:
        self._writer.close()


def _sidecar_row(end: Stored | PictureError) -> dict[str, Any]:
    if isinstance(end, PictureError):
        return {"status": end.reason, "detail": end.detail[:DETAIL_CHARACTERS]}
    row = {"status": Reason.OK, "format": end.format, "orientation": end.orientation, "sha256": end.sha256}
    row |= {"width": end.size[0], "height": end.size[1], "xxh3": xxhash.xxh3_64_intdigest(end.data)}
    if end.sha256 == end.fetched_sha256:
        return row
    fetched = {"fetched_width": end.fetched[0], "fetched_height": end.fetched[1]}
    return row | fetched | {"fetched_sha256": end.fetched_sha256}
