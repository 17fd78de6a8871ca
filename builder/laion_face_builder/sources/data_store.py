"""Work with a DATA_DIR wherever it is kept: in its folder, or at an fsspec address (s3://bucket/data).

    with kept.at_work(data) as here:          # the folder itself, or a new one that is gone in the end
        path = kept.bring(here, here.ids(3))  # a copy, if it is kept at an address
        …                                     # made as always: written whole, under its final name
        kept.send(here, here.index(3))        # and now it is at the address, too

For an address, `root` is a scratch folder. Object stores show a file once it has come whole. Elsewhere it is written
beside its name, and renamed.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from laion_face_builder.errors import DiskError, LaionFaceError, SourceNotFound
from laion_face_builder.files import Fingerprint, disk_error, fingerprint_in, read_fingerprint, written_whole
from laion_face_builder.layout import DataDir
from laion_face_builder.shown import harmless, short, shown
from laion_face_builder.sources.fsspec_folder import filesystem_of
from laion_face_builder.sources.retrying import TransientError, retried
from laion_face_builder.temporary import make_folder, remove_folder

T = TypeVar("T")

#: Protocols of stores in which a file is there whole or not at all.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "hf"}
#: Errors that no second attempt changes: no room, a quota, a read-only disk, a file where a folder should be.
_FOR_GOOD = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextmanager
def at_work(data: DataDir) -> Iterator[DataDir]:
    """Give the DATA_DIR with a folder to work in: its own, or a new one for what is kept at an address."""
    if data.address is None:
        yield data
        return
    folder = make_folder("work")
    try:
        yield dataclasses.replace(data, root=folder)
    finally:
        remove_folder(folder)


def has(data: DataDir, path: Path) -> bool:
    """Tell whether a file, named by its path below `root`, is there.

    Raises:
        SourceError: the address does not answer, as for all that follow.
    """
    return path.exists() or (data.address is not None and _asked(data, path, lambda system, at: system.exists(at)))


def fingerprint(data: DataDir, path: Path) -> Fingerprint | None:
    """Read the fingerprint of one of our Parquet files, None if there is no such file; at an address, only the footer.

    Raises:
        BadFile: there is a file, but it is not one of ours.
    """
    if data.address is None or path.exists():
        return read_fingerprint(path)
    if not has(data, path):
        return None

    def read(system: Any, at: str) -> Fingerprint:
        with system.open(at, "rb", cache_type="none") as file:
            return fingerprint_in(file, _address(data, path))

    return _asked(data, path, read)


def size(data: DataDir, path: Path) -> int | None:
    """Return a file's size in bytes; None if it is not there."""
    if data.address is None or path.exists():
        return path.stat().st_size if path.exists() else None

    def ask(system: Any, at: str) -> int | None:
        return int(system.size(at) or 0) if system.exists(at) else None

    return _asked(data, path, ask)


def below(data: DataDir, folder: Path) -> dict[Path, int]:
    """List the files below a folder and their bytes, sorted."""
    if data.address is None:
        return {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}

    def find(system: Any, at: str) -> dict[Path, int]:
        found = sorted(system.find(at, detail=True).items())
        return {folder / name.rpartition(f"{at.strip('/')}/")[2]: int(info["size"] or 0) for name, info in found}

    return _asked(data, folder, find)


def bring(data: DataDir, path: Path) -> Path:
    """Give a file to read, copied if it lies at an address.

    Raises:
        SourceNotFound: it is not there.
    """
    if data.address is not None and not path.exists():
        with written_whole(path) as partial:
            _asked(data, path, lambda system, at: system.get_file(at, str(partial)))
    return path


def brought(data: DataDir, path: Path) -> bool:
    """Do as `bring`; say whether the file is there."""
    try:
        return bring(data, path).exists()
    except SourceNotFound:
        return False


def place(data: DataDir, path: Path) -> str:
    """Give a file's path or address, for those who open both alike."""
    return str(path) if data.address is None else _address(data, path)


@contextmanager
def opened(data: DataDir, path: Path) -> Iterator[Any]:
    """Give what Parquet can read a file from in pieces: its path, or an open file at the address."""
    if data.address is None or path.exists():
        yield path
        return
    with _asked(data, path, lambda system, at: system.open(at, "rb", cache_type="none")) as file:
        yield file


def send(data: DataDir, path: Path) -> None:
    """Copy a whole file to the address, if the DATA_DIR has one.

    Raises:
        DiskError: it may not be written there.
    """
    if data.address is None:
        return
    is_whole = data.address.partition("://")[0] in _WHOLE

    def put(system: Any, at: str) -> None:
        parent, _, name = at.rpartition("/")
        target = at if is_whole else f"{parent}/.{name}.{uuid.uuid4().hex[:8]}.partial"
        system.makedirs(parent, exist_ok=True)
        system.put_file(str(path), target)
        if not is_whole:
            system.mv(target, at)

    _asked(data, path, put)


def remove(data: DataDir, folder: Path) -> None:
    """Remove a folder with all that is in it.

    Raises:
        DiskError: it may not be removed.
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:  # It names the file, but not where that is.
        raise disk_error(folder, error) from error
    if data.address is not None:
        _asked(data, folder, lambda system, at: system.rm(at, recursive=True))


def remove_afar(data: DataDir, path: Path) -> None:
    """Remove a file at the address, if it is there; our own copy stays."""
    if data.address is not None:
        _asked(data, path, lambda system, at: system.rm_file(at) if system.exists(at) else None)


def _address(data: DataDir, path: Path) -> str:
    return f"{(data.address or '').rstrip('/')}/{path.relative_to(data.root).as_posix()}"


def _asked(data: DataDir, path: Path, ask: Callable[[Any, str], T]) -> T:
    """Ask the filesystem of the address about a path; again if it stumbles."""
    address = _address(data, path)

    def attempt() -> T:
        system, at = filesystem_of(address)
        system.invalidate_cache()  # Others write there as well.
        try:
            return ask(system, at)
        except LaionFaceError:
            raise
        except FileNotFoundError as error:
            raise SourceNotFound(f"{shown(address)}: there is no such file or bucket") from harmless(error)
        except PermissionError as error:
            raise DiskError(f"{shown(address)}: no permission ({short(error, 200)})") from harmless(error)
        except OSError as error:
            if error.errno not in _FOR_GOOD:
                raise _stumbled(error) from harmless(error)
            raise DiskError(f"{shown(address)}: {short(error, 200)}") from harmless(error)
        except Exception as error:  # Every filesystem raises errors of its own libraries.
            raise _stumbled(error) from harmless(error)

    return retried(attempt, shown(address))


def _stumbled(error: Exception) -> TransientError:
    return TransientError(short(f"{type(error).__name__}: {error}", 200))
