"""Open a Parquet file at a path or an address: in one process at a time, and again when a host stumbles."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile, LaionFaceError, NotPrepared, SourceNotFound
from laion_face_builder.files import digest, sha256_of
from laion_face_builder.shown import harmless, in_one_line, shown
from laion_face_builder.upstream.retrying import TransientError, retried
from laion_face_builder.upstream.source_fsspec import filesystem_of
from laion_face_builder.upstream.tokens import Token

T = TypeVar("T")

#: Column chunks of row groups with more bytes (decompressed) are not fetched whole, but through a buffer of 4 MiB each.
_LARGE_GROUP, _BUFFER = 1 << 26, 1 << 22


@dataclass(frozen=True)
class _Opened:
    """What is open in one process."""

    process: int
    handle: Any
    parquet: pq.ParquetFile

    def close(self) -> None:
        self.parquet.close(force=True)
        if self.handle is not None:
            self.handle.close()


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
    def parquet(self) -> pq.ParquetFile:
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

        Raises:
            BadFile, NotPrepared, SourceError: in place of whatever the libraries raise.
        """
        return retried(lambda: self._attempt(read), shown(self.address)) if self._is_remote else self._attempt(read)

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
        parquet = pq.ParquetFile(handle or self.address, pre_buffer=True)
        metadata = parquet.metadata
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        if max(sizes, default=0) > _LARGE_GROUP:
            parquet.close()
            how = {"metadata": metadata, "pre_buffer": False, "buffer_size": _BUFFER}
            parquet = pq.ParquetFile(handle or self.address, **how)
        return _Opened(os.getpid(), handle, parquet)

    def _stated_version(self) -> str:
        system, path = self._system()
        info = system.info(path)
        if lfs := info.get("lfs"):
            return f"sha256:{lfs['sha256']}"
        stated = str(info.get("blob_id") or info.get("ETag") or "W/")
        if not stated.startswith("W/"):
            return f"stated:{stated}"
        return "footer:" + digest([repr(self.parquet.metadata.to_dict()), info.get("size")], 64)

    def _system(self) -> tuple[Any, str]:
        return filesystem_of(self.address, self._token)

    @property
    def _is_remote(self) -> bool:
        return "://" in self.address

    def _attempt(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (LaionFaceError, TransientError):
            raise
        except FileNotFoundError as error:
            raise self._absent() from harmless(error)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self.bad(in_one_line(error, 200)) from harmless(error)
        except Exception as error:  # Every remote filesystem raises errors of its own libraries.
            if not (self._is_remote or isinstance(error, OSError)):
                raise
            self.close()
            found = in_one_line(f"{type(error).__name__}: {error}", 200)
            raise TransientError(found) if self._is_remote else self.bad(found) from harmless(error)

    def _absent(self) -> LaionFaceError:
        if self._is_remote:
            return SourceNotFound(f"{shown(self.address)}: there is no such file, or it is private and needs a token")
        return NotPrepared(f"{self.address}: there is no index there. Make it with `laion-face prepare`.")


@functools.lru_cache(maxsize=64)
def _sha256_of(path: str, _size: int, _modified: int) -> str:
    return f"sha256:{sha256_of(Path(path))}"
