"""The cache of fetched pictures, by the SHA-256 of their address: what one epoch fetched, the next does not.

FOLDER/laion-face-cache  says that the folder is such a cache
FOLDER/ab/cdef…          one picture: a header of 72 bytes, then the bytes as they came
FOLDER/ab/.cdef….RANDOM  one that is being written; nobody reads it, and an hour later anybody removes it

Any number of threads and processes may use a folder at once. An entry is written beside its name and renamed, so
nobody sees half of one; and it carries a checksum, so what a crash or a bad disk left is taken for absent, never for
whole. Because of the checksum nothing is synced: this is a cache, and a sync costs more than a fetch.

Each of the 256 folders is held below its share of the bound by whoever writes to it: the pictures unused for longest go
first. A use is noted in the modification time, at most once an hour.

Only successes are kept. A failure costs a row of a report to fetch again, but remembered it could hide a picture that
its host serves again by then, and an opt-out that was lifted; and the report would count what nobody tried.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from laion_face_builder.errors import OptionError
from laion_face_builder.files import disk_errors
from laion_face_builder.images.pictures import Picture
from laion_face_builder.index.removed import Removed
from laion_face_builder.log import logger
from laion_face_builder.options import Ahead

MARKER = "laion-face-cache"
_MAGIC = b"LFpic\0\0\1"
#: Magic, checksum of all behind it, orientation, format, width, height, size, SHA-256 of the address.
_HEADER = struct.Struct("<8sLB7sLLQ32s")
_CHECKED_FROM = 12
_FOLDERS = 256
_SECONDS_BETWEEN_USES = 3600.0
_STALE_SECONDS = 3600.0
#: Looked through again once so much of a folder's share has been written; emptied to the second.
_LOOK_AFTER, _EMPTY_TO = 1 / 16, 15 / 16


class PictureCache:
    """Pictures on disk, by their address; bounded. Picklable: a worker process uses the same folder.

    Args:
        folder: made if it is not there; holds nothing else. One that may only be read is read.
        max_bytes: of all pictures together. One larger than a 256th of it is not kept.

    Raises:
        OptionError: the folder cannot be made, or holds something else.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = Ahead.cache_bytes) -> None:
        self.folder, self.max_bytes = Path(folder).expanduser().absolute(), max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _mark(self.folder)
        except OSError as error:
            raise OptionError(
                f"cache_images={os.fspath(folder)!r}: {error.strerror}. Give a folder to write to"
            ) from None
        self._is_read_only = False
        self._share = max_bytes // _FOLDERS
        self._written: dict[str, float] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[str, int]:
        return os.fspath(self.folder), self.max_bytes

    def __setstate__(self, state: tuple[str, int]) -> None:
        folder, max_bytes = state
        self.__init__(folder, max_bytes)  # type: ignore[misc]  # locks do not travel

    def get(self, url: str) -> Picture | None:
        """Return the picture kept for `url`; None if it is not here, or not whole any more."""
        key = sha256(url.encode("utf-8", "surrogatepass")).digest()
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            facts = os.fstat(descriptor)
            whole = os.read(descriptor, facts.st_size + 1)
            if facts.st_mtime < time.time() - _SECONDS_BETWEEN_USES:
                with suppress(OSError):
                    os.utime(path)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return _unpacked(whole, key)

    def put(self, url: str, picture: Picture) -> None:
        """Keep a picture. A full disk or a vanished folder only means that it is not kept."""
        size = _HEADER.size + len(picture.data)
        if size > self._share or self._is_read_only:
            return
        key = sha256(url.encode("utf-8", "surrogatepass")).digest()
        path = self._path(key)
        partial = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.urandom(4).hex()}"
        with suppress(OSError):
            try:
                _write(partial, _packed(picture, key))
                os.replace(partial, path)
            except OSError as error:
                with suppress(OSError):
                    os.unlink(partial)
                self._look_at(error)
                raise
            self._make_room(os.path.dirname(path), size)

    def _look_at(self, error: OSError) -> None:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not self._is_read_only:
            self._is_read_only = True
            logger.warning(
                "cache_images: %s can only be read (%s): nothing new is kept there", self.folder, error.strerror
            )

    def _path(self, key: bytes) -> str:
        return _place(self.folder, key)

    def _make_room(self, folder: str, size: int) -> None:
        with self._lock:
            # The first time nobody knows what is there already.
            written = self._written.get(folder, self._share) + size
            is_due = written > self._share * _LOOK_AFTER
            self._written[folder] = 0 if is_due else written
        if is_due:
            _trim(folder, self._share - int(self._share * _LOOK_AFTER), int(self._share * (_EMPTY_TO - _LOOK_AFTER)))


def forget(folder: str | os.PathLike[str], removed: Removed, urls: Iterable[str] = ()) -> int:
    """Remove from a cache the pictures of these addresses, and those named by their bytes; return how many.

    An address is found by its own hash, which is not that in `removed`: those that a list of addresses and hosts means
    have to be given. If it names bytes, all that is kept is read. Others may use the folder meanwhile.

    Raises:
        OptionError: there is no cache. DiskError: it cannot be read, or a picture not be removed.
    """
    place = Path(folder).expanduser().absolute()
    if not (place / MARKER).exists():
        raise OptionError(f"cache_images={os.fspath(folder)!r}: no cache of pictures is there. Name the folder of one")
    with disk_errors(place):
        known = {_place(place, sha256(url.encode("utf-8", "surrogatepass")).digest()) for url in urls}
        folders = sorted({os.path.dirname(path) for path in known})
        if removed.pictures:
            folders = [str(path) for path in place.glob("[0-9a-f][0-9a-f]")]
        found = [path for folder in folders for path in _entries(folder)]
        gone = [path for path in found if _final(path) in known or _is_named(path, removed)]
        for path in gone:
            with suppress(FileNotFoundError):  # Others trim the same folder.
                os.unlink(path)
    return len({*map(_final, gone)})


def _place(folder: Path, key: bytes) -> str:
    name = key.hex()
    return f"{folder}/{name[:2]}/{name[2:]}"


def _mark(folder: Path) -> None:
    """Mark a new or empty folder as a cache.

    Raises:
        OptionError: it holds something else.
        OSError: it cannot be read, or is empty and cannot be written to.
    """
    if (folder / MARKER).exists():
        return
    if any(entry != MARKER for entry in os.listdir(folder)):
        raise OptionError(
            f"cache_images={os.fspath(folder)!r} holds something else than kept pictures, which are removed when there "
            f"are too many. Give a new folder, or an empty one. (A cache is known by its file {MARKER!r}.)"
        )
    (folder / MARKER).write_bytes(b"Pictures that laion_face keeps. This folder may be removed as a whole.\n")


def _entries(folder: str) -> list[str]:
    """List a folder's pictures, also those that are being written, or were when somebody was killed."""
    with suppress(FileNotFoundError):
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    return []


def _final(path: str) -> str:
    """Return the name that an entry has or gets once it is whole."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name.removeprefix('.').partition('.')[0]}"


def _is_named(path: str, removed: Removed) -> bool:
    if not removed.pictures:
        return False
    try:
        data = Path(path).read_bytes()[_HEADER.size :]
    except FileNotFoundError:
        return False
    return removed.names_picture(data, [sha256(data).hexdigest()])


def _trim(folder: str, max_bytes: int, down_to: int) -> None:
    """Remove what was unused for longest, down to `down_to`, if `folder` holds more than `max_bytes`.

    Other processes may do the same at the same time.
    """
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(OSError):
                facts = entry.stat()
                if not entry.name.startswith("."):
                    entries.append((facts.st_mtime, facts.st_size, entry.path))
                elif facts.st_mtime < time.time() - _STALE_SECONDS:
                    os.unlink(entry.path)
    total = sum(size for _, size, _ in entries)
    if total <= max_bytes:
        return
    for _, size, path in sorted(entries):
        if total <= down_to:
            return
        with suppress(OSError):
            os.unlink(path)
        total -= size


def _packed(picture: Picture, key: bytes) -> bytes:
    header = _HEADER.pack(
        _MAGIC,
        0,
        picture.orientation,
        picture.format.encode("ascii"),
        picture.width,
        picture.height,
        len(picture.data),
        key,
    )
    checked = header[_CHECKED_FROM:] + picture.data
    return _MAGIC + struct.pack("<L", zlib.crc32(checked)) + checked


def _unpacked(whole: bytes, key: bytes) -> Picture | None:
    if len(whole) <= _HEADER.size:
        return None
    magic, checksum, orientation, form, width, height, size, owner = _HEADER.unpack_from(whole)
    if magic != _MAGIC or size != len(whole) - _HEADER.size or owner != key:
        return None
    if zlib.crc32(memoryview(whole)[_CHECKED_FROM:]) != checksum:
        return None
    return Picture(whole[_HEADER.size :], form.rstrip(b"\0").decode("ascii"), width, height, orientation)


def _write(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        # Not the folder above, with its marker: if that has gone, so has the cache.
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(path))
        descriptor = os.open(path, flags, 0o644)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:]) or 0
