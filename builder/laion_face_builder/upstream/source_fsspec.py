"""Files in fsspec folders: s3://, gs://, hf:// and whatever else is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from laion_face_builder.errors import OptionError
from laion_face_builder.upstream.footers import footer_version
from laion_face_builder.upstream.retrying import TransientError, retried
from laion_face_builder.upstream.source_files import PIECE, CopiedFile
from laion_face_builder.upstream.source_url import parquet_mismatch, place_of, redacted


@dataclass(frozen=True)
class FsspecFile(CopiedFile):
    """A file in an fsspec folder (s3://, gs://, memory://, …), copied in ranges."""

    address: str

    def place(self, folder: Path) -> Path:
        """HOST-<hex of the folder's address>/NAME."""
        return place_of(folder, self.address)

    def pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Ranges of 16 MiB."""
        system, path = filesystem_of(self.address)
        for begin in range(start, self.size or 0, 16 * PIECE):
            stop = min(begin + 16 * PIECE, self.size or 0)
            piece = _asked(partial(system.cat_file, path, start=begin, end=stop))
            if len(piece) != stop - begin:
                raise TransientError(f"got {len(piece)} of {stop - begin} bytes at {begin}")
            yield begin, piece

    def mismatch(self, path: Path) -> str | None:
        """A wrong size or footer."""
        return parquet_mismatch(self, path)


def look_up_fsspec(address: str) -> FsspecFile:
    """The file at an fsspec address.

    Raises:
        SourceError: no answer; BadFile: not a Parquet file.
    """

    def ask() -> FsspecFile:
        system, path = filesystem_of(address)
        info = _asked(lambda: system.info(path))
        size, etag = int(info["size"]), str(info.get("ETag") or "")
        if etag and not etag.startswith("W/"):
            return FsspecFile(address, size, "etag:" + etag.strip('"'), address)

        def read_at(start: int, stop: int) -> bytes:
            return bytes(_asked(lambda: system.cat_file(path, start=start, end=stop)))

        return FsspecFile(address, size, footer_version(read_at, size, address), address)

    return retried(ask, address)


def list_fsspec(address: str) -> list[str]:
    """Addresses of all files in an fsspec folder and below it."""

    def ask() -> list[str]:
        system, path = filesystem_of(address)
        system.invalidate_cache()
        return [str(system.unstrip_protocol(found)) for found in _asked(lambda: system.find(path))]

    return sorted(retried(ask, address))


def filesystem_of(address: str, **options: Any) -> tuple[Any, str]:
    """fsspec's filesystem for the address, and the path in it.

    Raises:
        OptionError: nothing installed understands the address.
    """
    import fsspec

    _revive_after_fork()
    try:
        system, path = fsspec.core.url_to_fs(address, **options)
    except (ValueError, ImportError) as error:
        raise OptionError(f"{redacted(address)}: {error}") from error
    return system, path


def _revive_after_fork() -> None:
    """Lets fsspec start its thread anew in a forked process: 2025.3 waits for the parent's, for ever."""
    from fsspec import asyn

    if asyn.iothread[0] is not None and not asyn.iothread[0].is_alive():
        asyn.reset_lock()


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # Every filesystem raises errors of its own libraries.
        raise TransientError(f"{type(error).__name__}: {error}".replace("\n", " ")) from error
