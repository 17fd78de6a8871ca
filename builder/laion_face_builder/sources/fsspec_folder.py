"""Copy files from fsspec folders: s3://, gs://, hf:// and whatever else is installed."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from laion_face_builder.errors import OptionError, SourceError
from laion_face_builder.files import digest
from laion_face_builder.shown import bare, harmless, short, shown
from laion_face_builder.sources.copied_file import PIECE, CopiedFile
from laion_face_builder.sources.hub import Token
from laion_face_builder.sources.retrying import TransientError, Unreachable, retried
from laion_face_builder.sources.url import parquet_mismatch, place_of, without_user

#: What filesystems say about a file that changes when it does; each has its own words.
_CHANGING = (
    *("mtime", "created", "updated", "modified", "modify", "last_modified", "LastModified", "last_commit"),
    *("md5Hash", "md5", "content_md5", "generation", "blob_id", "oid", "modificationTime"),
)


@dataclass(frozen=True)
class FsspecFile(CopiedFile):
    """A file in an fsspec folder (s3://, gs://, memory://, …), copied in ranges.

    Args:
        root: the folder's address, which may carry user and password.
        path: as the filesystem of `root` calls it.
        token: for hf:// addresses.
    """

    root: str = field(repr=False)
    path: str = field(repr=False)
    token: Token = field(default=None, repr=False)

    def place(self, folder: Path) -> Path:
        """Return HOST-<hex of the folder's address>/NAME below `folder`."""
        return place_of(folder, self.name)

    def pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield ranges of 16 MiB."""
        system, _ = filesystem_of(self.root, self.token)
        for begin in range(start, self.size or 0, 16 * PIECE):
            stop = min(begin + 16 * PIECE, self.size or 0)
            piece = _asked(partial(system.cat_file, self.path, start=begin, end=stop))
            if len(piece) != stop - begin:
                raise TransientError(f"got {len(piece)} of {stop - begin} bytes at {begin}")
            yield begin, piece

    def mismatch(self, path: Path) -> str | None:
        """Say if the size is wrong or the file is not Parquet; None if nothing is wrong."""
        return parquet_mismatch(self, path)


def fsspec_files(root: str, token: Token = None) -> dict[str, FsspecFile]:
    """List all files in an fsspec folder and below it, by their paths in it: one listing, nothing asked of each.

    Raises:
        SourceError: no answer; OptionError: nothing installed understands the address.
    """

    def ask() -> dict[str, FsspecFile]:
        system, folder = filesystem_of(root, token)
        system.invalidate_cache()
        found = _asked(lambda: system.find(folder, detail=True))
        below = {path.removeprefix(folder.rstrip("/")).lstrip("/"): path for path in sorted(found)}
        return {name: _file(root, name, path, found[path], token) for name, path in below.items()}

    return retried(ask, shown(root))


def _file(root: str, name: str, path: str, info: Mapping[str, Any], token: Token) -> FsspecFile:
    size = int(info["size"]) if info.get("size") is not None else None
    return FsspecFile(posixpath.join(bare(root), name), size, _version(size, info), root, path, token)


def _version(size: int | None, info: Mapping[str, Any]) -> str:
    etag = str(info.get("ETag") or info.get("etag") or "")
    if etag and not etag.startswith("W/"):
        return "etag:" + etag.strip('"')
    return "modified:" + digest([size, *([name, str(info[name])] for name in _CHANGING if name in info)])


def list_fsspec(address: str, token: Token = None) -> list[str]:
    """List the addresses of all files in an fsspec folder and below it; in an http(s) folder with user and password."""

    def ask() -> list[str]:
        system, path = filesystem_of(address, token)
        system.invalidate_cache()
        return [str(system.unstrip_protocol(found)) for found in _asked(lambda: system.find(path))]

    alone, secret = _of_http(address)
    user = address[: len(address) - len(alone.partition("://")[2])] if secret else ""
    found = sorted(retried(ask, shown(address)))
    return [user + file.partition("://")[2] if user else file for file in found]


def filesystem_of(address: str, token: Token = None) -> tuple[Any, str]:
    """Return fsspec's filesystem for the address, and the path in it; the token is for hf:// alone.

    Raises:
        OptionError: nothing installed understands the address; SourceError: its server does not answer.
    """
    import fsspec

    options: dict[str, Any] = {"token": token} if token is not None and address.startswith("hf://") else {}
    address, secret = _of_http(address)
    if secret:
        options = {"client_kwargs": {"headers": secret}}
    _revive_after_fork()
    try:
        system, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error.name
        install = f". Install it: `pip install {missing}`" if missing else ""
        raise OptionError(f"{shown(address)}: {short(error)}{install}") from harmless(error)
    except ValueError as error:
        raise OptionError(
            f"{shown(address)}: {short(error)}; expected hf://datasets/, http(s)://, s3://, gs:// or another "
            "that fsspec knows"
        ) from harmless(error)
    except Exception as error:  # Some connect at once (ftp, sftp), and raise errors of their own libraries.
        said = short(error).removesuffix(".")
        raise SourceError(f"{shown(address)}: no answer, {said}. {Unreachable.way_out}") from harmless(error)
    return system, path


def _of_http(address: str) -> tuple[str, dict[str, str]]:
    """Do as `without_user` for http(s) alone: other filesystems take user and password from the address."""
    return without_user(address) if address.startswith(("http://", "https://")) else (address, {})


def _revive_after_fork() -> None:
    """Let fsspec start its thread anew in a forked process: 2025.3 waits for the parent's, for ever."""
    from fsspec import asyn

    if asyn.iothread[0] is not None and not asyn.iothread[0].is_alive():
        asyn.reset_lock()


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # Every filesystem raises errors of its own libraries, some with the whole address.
        raise _passing(error) from harmless(error)


def _passing(error: Exception) -> TransientError:
    return TransientError(short(f"{type(error).__name__}: {error}"))
