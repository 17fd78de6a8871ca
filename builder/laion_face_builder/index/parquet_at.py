"""Open a Parquet file at a path or an address: in one process at a time, and again when a host stumbles.

Pages that carry a checksum are compared with it. What is damaged on its way from a host is asked for once more.

Row groups may be larger than what is asked for: the batch that was decoded last is kept for the next time.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile, LaionFaceError, NotPrepared, SourceNotFound
from laion_face_builder.files import digest, require_readable, sha256_of
from laion_face_builder.parquet_files import is_damage, require_agreement
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.shown import harmless, short, shown
from laion_face_builder.sources.fsspec_folder import filesystem_of
from laion_face_builder.sources.hub import Token
from laion_face_builder.sources.retrying import TransientError, retried

T = TypeVar("T")
#: Column chunks of row groups with more bytes (decompressed) are not fetched whole, but through a buffer of 4 MiB each.
_LARGE_GROUP, _BUFFER = 1 << 26, 1 << 22


@dataclass(frozen=True)
class _Opened:
    """What is open in one process."""

    process: int
    handle: Any
    parquet: OpenParquet

    def close(self) -> None:
        self.parquet.close(force=True)
        if self.handle is not None:
            self.handle.close()


class _Damaged(Exception):
    """What came from a host is no Parquet file, or not the one that was written; `bad` says so."""

    def __init__(self, bad: BadFile) -> None:
        self.bad = bad
        super().__init__(str(bad))


class ParquetAt:
    """A Parquet file; opened when it is first read, and again in every process that it travels to.

    Forked processes share file positions and connections with their parent, so nothing open is ever used in another
    process than the one that opened it.
    """

    def __init__(self, address: str, token: Token = None) -> None:
        self.address = address
        self._token = token
        self._opened: _Opened | None = None

    @property
    def parquet(self) -> OpenParquet:
        """The open file; another one after a failure, and in another process."""
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = self.asked(self._open)
        return self._opened.parquet

    def version(self) -> str:
        """Name the content: by the SHA-256 of its bytes, by what the host states instead, or by the footer."""
        if self._is_remote:
            return self.asked(self._stated_version)
        status = os.stat(self.address)
        return _sha256_of(self.address, status.st_size, status.st_mtime_ns)

    def asked(self, read: Callable[[], T]) -> T:
        """Return what `read` gives; if the host stumbles, the file is closed and `read` is called again.

        So it is, once, if what came is damaged: the file is blamed if it is so again.

        Raises:
            BadFile, NotPrepared, SourceError: in place of whatever the libraries raise.
        """
        if not self._is_remote:
            return self._attempt(read)
        for _ in range(2):
            try:
                return retried(lambda: self._attempt(read), shown(self.address))
            except _Damaged as error:
                found = error
        raise found.bad from found.__cause__

    def bad(self, found: str) -> BadFile:
        """Return the error for a file that is no index."""
        return BadFile(
            self.address,
            found=found,
            expected="an index part, as laion-face wrote it or another program saved it again",
            way_out="Run `laion-face prepare` again, or name another index.",
        )

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> _Opened:
        handle: Any = None
        if self._is_remote:
            system, path = self._system()
            # Parquet asks for exactly what it needs, gathered by pre_buffer: another cache would only fetch more.
            handle = system.open(path, "rb", cache_type="none")
        parquet = OpenParquet(handle or self.address, pre_buffer=True)
        metadata = parquet.metadata
        require_agreement(metadata)
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        if max(sizes, default=0) > _LARGE_GROUP:
            parquet.close()
            parquet = OpenParquet(handle or self.address, parquet.footer, pre_buffer=False, buffer_size=_BUFFER)
        return _Opened(os.getpid(), handle, parquet)

    def _stated_version(self) -> str:
        system, path = self._system()
        info = system.info(path)
        if lfs := info.get("lfs"):
            return f"sha256:{lfs['sha256']}"
        stated = str(info.get("blob_id") or info.get("ETag") or "W/")
        if not stated.startswith("W/"):
            return f"stated:{stated}"
        return "footer:" + digest([(self.parquet.footer or b"").hex(), info.get("size")], 64)

    def _system(self) -> tuple[Any, str]:
        return filesystem_of(self.address, self._token)

    @property
    def _is_remote(self) -> bool:
        return "://" in self.address

    def _attempt(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (LaionFaceError, TransientError, _Damaged):
            raise
        except FileNotFoundError as error:
            raise self._absent() from harmless(error)
        except Exception as error:  # Every remote filesystem raises errors of its own libraries.
            is_damaged = is_damage(error)
            if not (is_damaged or self._is_remote or isinstance(error, OSError)):
                raise
            self.close()
            require_readable(self.address, error)
            if is_damaged:
                bad = self.bad(short(error, 200))
                raise (_Damaged(bad) if self._is_remote else bad) from harmless(error)
            found = short(f"{type(error).__name__}: {error}", 200)
            raise TransientError(found) if self._is_remote else self.bad(found) from harmless(error)

    def _absent(self) -> LaionFaceError:
        if self._is_remote:
            return SourceNotFound(f"{shown(self.address)}: there is no such file, or it is private and needs a token")
        return NotPrepared(f"{self.address}: there is no index there. Make it with `laion-face prepare`.")


@functools.lru_cache(maxsize=64)
def _sha256_of(path: str, _size: int, _modified: int) -> str:
    return f"sha256:{sha256_of(Path(path))}"


class Cursor:
    """A place in an open Parquet file. To read on decodes nothing twice; to go back begins a row group again.

    Args:
        bounds: first row and the row after the last of each row group.
        columns: what is read.
        rows: how many are decoded at once.
        made: (first row, batch) -> the rows as they are wanted; applied to whole batches, before they are cut.
    """

    def __init__(
        self,
        parquet: pq.ParquetFile,
        bounds: Sequence[tuple[int, int]],
        columns: Sequence[str],
        rows: int,
        made: Callable[[int, pa.RecordBatch], pa.RecordBatch],
    ) -> None:
        self._parquet, self._bounds, self._columns, self._rows, self._made = parquet, bounds, list(columns), rows, made
        self._group = -1
        self._decoded: Iterator[pa.RecordBatch] = iter(())
        self._first = self._stop = 0
        self._held: pa.RecordBatch | None = None

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows start … stop of the file, in pieces."""
        while start < stop:
            held = self._reach(start)
            end = min(stop, self._stop)
            yield held.slice(start - self._first, end - start)
            start = end

    def _reach(self, row: int) -> pa.RecordBatch:
        """Return the batch with `row` in it."""
        if self._held is not None and self._first <= row < self._stop:
            return self._held
        group = bisect.bisect_right(self._bounds, row, key=lambda bound: bound[0]) - 1
        self._held = None
        if group != self._group or row < self._stop:
            self._stop = self._bounds[group][0]
            self._decoded = self._parquet.iter_batches(self._rows, row_groups=[group], columns=self._columns)
        self._group = -1  # begun again, should this fail
        while row >= self._stop:
            batch = next(self._decoded, None)
            if batch is None:
                raise pa.ArrowInvalid(f"fewer rows in row group {group} than the footer says")
            self._first, self._stop = self._stop, self._stop + len(batch)
        self._held = self._made(self._first, batch)
        self._group = group
        return self._held
