"""Files that are whole or not there: written beside their final name, synced, renamed. Also fingerprints and locks.

A fingerprint says what made a file (kind, part, source version, options, format version), never when, where or by
whom. It lies in the Parquet schema metadata as canonical JSON, so that two runs from the same sources give the same
bytes, and a reader can tell whether a file still belongs to its sources.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from laion_face_builder.errors import BadFile, DiskError, LaionFaceError
from laion_face_builder.log import logger

FINGERPRINT_KEY = b"laion_face.fingerprint"
#: Raised when the layout of any of our files changes: older files are then rebuilt.
FORMAT_VERSION = 1

#: In the fingerprint of a published file the number of its form, which says nothing of its rows.
FORM_KEY = "form"

Fingerprint = dict[str, Any]

_NO_ROOM = {errno.ENOSPC: "no room left on its disk", errno.EDQUOT: "your quota of its disk is used up"}
_NOT_ALLOWED = {errno.EROFS: "read-only", errno.EACCES: "no permission to write", errno.EPERM: "no permission to write"}
#: Only writing meets these.
_OF_WRITING = {*_NO_ROOM, errno.EFBIG, errno.EROFS}
#: Of a disk that fails, whoever reads or writes; they come without the name of a file.
_OF_DISKS = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV}
_OF_READING = {*_OF_DISKS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ELOOP}
_AGAIN = "run the same command again: it goes on"
#: What to do about the others.
_WAYS_OUT = {
    **dict.fromkeys(_OF_DISKS, f"Look what the system's log says of that disk, and {_AGAIN}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Give yourself the permission"),
    errno.ELOOP: "Its links lead in a circle: mend them",
    errno.EMFILE: f"Raise the limit of open files (ulimit -n 4096), and {_AGAIN}",
    errno.ENFILE: f"Close some programs, and {_AGAIN}",
    errno.ENOLCK: "Its disk cannot lock files: name a folder on another",
    errno.EBUSY: f"End the program that uses it, and {_AGAIN}",
    errno.ETXTBSY: f"End the program that runs it, and {_AGAIN}",
    errno.ENAMETOOLONG: "Name a folder with a shorter path",
    errno.ENOENT: f"Something has removed it, or its folder: {_AGAIN}",
}


def canonical_json(value: object) -> str:
    """Return `value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def make_fingerprint(kind: str, **what: Any) -> Fingerprint:
    """Return a fingerprint of `kind` with the format version and whatever else defines the content."""
    return {"format": FORMAT_VERSION, "kind": kind, **what}


def digest(value: object, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    # Paths may have bytes that are no UTF-8, which Python keeps as surrogates.
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()[:length]


def stamped(schema: pa.Schema, fingerprint: Mapping[str, Any]) -> pa.Schema:
    """Return `schema` with `fingerprint` in its metadata."""
    return schema.with_metadata({FINGERPRINT_KEY: canonical_json(fingerprint).encode()})


def read_fingerprint(path: Path) -> Fingerprint | None:
    """Return the fingerprint of one of our Parquet files, None if there is no such file.

    Raises:
        BadFile: there is a file, but it is not one of ours.
    """
    return fingerprint_in(path, path) if path.exists() else None


def fingerprint_in(source: Any, name: str | os.PathLike[str]) -> Fingerprint:
    """Return the fingerprint of one of our Parquet files: a path, or an open file that is called `name`.

    Raises:
        BadFile: it is not one of ours; DiskError: it cannot be read.
    """
    try:
        metadata = pq.read_schema(source).metadata or {}
        fingerprint = json.loads(metadata[FINGERPRINT_KEY])
        if not isinstance(fingerprint, dict):
            raise TypeError
        return fingerprint
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        require_readable(name, error)
        raise BadFile(
            name,
            found=f"no fingerprint ({type(error).__name__})",
            expected="a Parquet file written by laion-face",
            way_out="Move it away and run `laion-face prepare` again.",
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, that file is synced and renamed to `path`.

    After an exception nothing is left; after a kill only a file called `.NAME.….partial`, which nobody reads.

    Raises:
        DiskError: there is no room, or it may not be written there.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with disk_errors(path, partial):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            put_in_place(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def put_in_place(partial: Path, path: Path) -> None:
    """Sync a complete file, and rename it to its final name, on the same disk."""
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


@contextmanager
def disk_errors(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn OSErrors about writing `path` into a DiskError that says what to do; let all others pass.

    Args:
        path: what people call it; a folder stands for all that is in it.
        partial: what is written first, if that is another file.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        if (file := concerned(path, error, partial)) is None:
            raise
        raise disk_error(file, error) from error


@contextmanager
def needing(room: int) -> Iterator[None]:
    """Have the error of a full disk say how many bytes all that is done here takes."""
    try:
        yield
    except DiskError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _with_need(error, room) from error


def _with_need(error: DiskError, room: int) -> DiskError:
    found = DiskError(f"{error}. All of it takes about {human_size(room)}")
    found.errno = error.errno
    return found


def concerned(path: Path, error: OSError, partial: Path | None = None) -> Path | None:
    """Return the file that could not be written, if that is what the error is about; `path` for its partial file."""
    named = next((Path(name) for name in (error.filename2, error.filename) if isinstance(name, str)), None)
    if named is None:  # Arrow has the name in the text only, others have none. What else is an OSError is a network's.
        is_named = type(error) in (OSError, PermissionError) and path.name in str(error)
        return path if error.errno in {*_OF_WRITING, *_OF_DISKS} or is_named else None
    if named in (partial, path, *path.parents):
        return path
    return named if path in named.parents or error.errno in _OF_WRITING else None


def disk_error(path: Path, error: OSError) -> DiskError:
    """Return the error that `path` cannot be written, in words for its user."""
    folder = next(place for place in (path, *path.parents, Path()) if place.is_dir())
    if error.errno in _NOT_ALLOWED:
        here = path.parent if folder == path else folder
        where = f"{here}: {_NOT_ALLOWED[error.errno]}, so {path} cannot be written"
        said = f"{where}. Give yourself the permission, or name another folder"
    elif error.errno in _NO_ROOM:
        said = f"{path}: {_NO_ROOM[error.errno]} ({_free(folder)}). Make room, or name another folder, and {_AGAIN}"
    elif error.errno == errno.EFBIG:
        limits = "than a file may be there, see `ulimit -f`"
        said = f"{path}: larger {limits} ({_free(folder)}). Raise that, or name another folder, and {_AGAIN}"
    else:
        why = os.strerror(error.errno) if error.errno is not None else str(error)
        way_out = _WAYS_OUT.get(error.errno or 0, "Move away what is in its way, or name another")
        said = f"{path}: cannot be written ({why}). {way_out}"
    found = DiskError(said)
    found.errno = error.errno
    return found


def require_readable(path: str | os.PathLike[str], error: BaseException) -> None:
    """Raise the error that a file of this machine cannot be read, if that is what `error` says.

    Whatever is in it may be as it should: it is not to be thrown away.

    Raises:
        DiskError: it cannot be read.
    """
    name = os.fspath(path)
    if not isinstance(error, OSError) or isinstance(error, LaionFaceError) or "://" in name:
        return
    if error.errno in _OF_READING and error.filename in (None, name):
        raise _read_error(name, error.errno) from error


def _read_error(name: str, number: int) -> DiskError:
    found = DiskError(f"{name}: cannot be read ({os.strerror(number)}). {_WAYS_OUT[number]}")
    found.errno = number
    return found


def _free(folder: Path) -> str:
    return f"{human_size(shutil.disk_usage(folder).free)} free at {folder}"


def remove_partials(folder: Path, name: str = "", kind: str = "partial") -> None:
    """Remove what killed writers left in `folder`, or of its file `name`. Call it only while holding the lock.

    Args:
        kind: how their names end; "incomplete" is what a download goes on from.
    """
    for partial in folder.glob(f".{name}*.{kind}"):
        with suppress(OSError):  # In a folder that may only be read it is in nobody's way.
            partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock file beside `path`, waiting for whoever has it: two processes never make the same file at once.

    Where nothing can be written no lock is needed, and none is held: whoever only reads goes on.

    Args:
        waiting: logged as a warning before the lock is waited for.

    Raises:
        DiskError: there is no room for the lock, or it may not be opened where other files can be written.
    """
    lock = _lock_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            logger.warning("%s", waiting)
        lock.acquire()
    except OSError as error:
        _require_unwritable(Path(lock.lock_file), error)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file beside `path` if nobody else does; yield whether it is held.

    Where nothing can be written it is not held.

    Raises:
        DiskError: as for `locked`.
    """
    lock = _lock_beside(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        _require_unwritable(Path(lock.lock_file), error)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def in_use(path: Path, waiting: str, *, alone: bool = False) -> Iterator[None]:
    """Hold the lock file beside `path` together with others, or `alone`: for those who change what the others make.

    Where nothing can be written it is not held.

    Args:
        waiting: logged as a warning before the lock is waited for.

    Raises:
        DiskError: as for `locked`.
    """
    lock, held = path.with_name(f".{path.name}.lock"), -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        _require_unwritable(lock, error)
        yield
        return
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        try:
            fcntl.flock(held, how | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s", waiting)
            fcntl.flock(held, how)
        yield
    finally:
        os.close(held)


def was_locked(path: Path) -> bool:
    """Say whether anybody has ever held the lock beside `path`, by `locked`."""
    return Path(_lock_beside(path).lock_file).exists()


def _lock_beside(path: Path) -> FileLock:
    return FileLock(str(path.with_name(f".{path.name}.lock")))


def _require_unwritable(lock: Path, error: OSError) -> None:
    """Raise DiskError unless the folder cannot be written to: no writing, no lock."""
    if error.errno not in _NOT_ALLOWED or os.access(lock.parent, os.W_OK):
        raise disk_error(lock, error) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, reading it in pieces."""
    hasher = hashlib.sha256()
    for piece in pieces_of(path):
        hasher.update(piece)
    return hasher.hexdigest()


def pieces_of(path: Path) -> Iterator[bytes]:
    """Read a file in pieces of 4 MB.

    Raises:
        DiskError: it cannot be read.
    """
    with path.open("rb") as file:
        while piece := _read(file, path):
            yield piece


def _read(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.read(1 << 22)
    except OSError as error:  # It names no file, and is not to be taken for one of what the pieces are written to.
        require_readable(path, error)
        raise


def disk_free(folder: Path) -> int:
    """Return the bytes that are free on the disk of `folder`, or of the folder in which it would be made."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free


def human_size(count: int | float) -> str:
    """Return a number of bytes as text for people, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # It names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)
