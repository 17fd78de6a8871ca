"""Read files of torch.save without torch, and without running anything of them.

Two containers exist, and both are read here (torch/serialization.py):
- a zip (torch 1.6 and newer): `NAME/data.pkl`, `NAME/data/KEY` for each tensor storage, `NAME/byteorder`; all stored,
  none compressed;
- an older stream: pickles of a magic number, the protocol, facts of the machine, the object, the storage keys; then
  the storages, each as an int64 count and its little-endian numbers.
"""

from __future__ import annotations

import errno
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from laion_face_builder.errors import BadFile
from laion_face_builder.torch_pickle.pickle_sizes import Malformed
from laion_face_builder.torch_pickle.unpickler import NoStorages, Storages, bad_pickle, one_door, unpickle

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
#: What each member of a zip starts with.
_LOCAL = b"PK\x03\x04"
_BUFFER = 1 << 20


@dataclass(frozen=True)
class PickleStream:
    """An open torch file, standing at the start of its main pickle.

    Attributes:
        path: the file.
        file: the bytes from here on; in a zip they end with the pickle.
        start: where in `path` the main pickle starts.
        size: how many bytes are left in `file`.
        storages: where the pickle's tensors get their numbers.
        has_late_numbers: whether these numbers are only there after `finish`.
        finish: to be called with what is left of `file` once the pickle has been read; the older format has its
            numbers there.
    """

    path: Path
    file: IO[bytes]
    start: int
    size: int
    storages: Storages
    has_late_numbers: bool
    finish: Callable[[IO[bytes]], None]


def load_pickle(path: Path) -> object:
    """Return the object in a file of torch.save; arrays and tensors come as NumPy arrays.

    Raises:
        UnsafePickle: it names something that is not plain data.
        BadFile: not such a file, malformed or truncated.
    """
    with one_door(path), open_pickle(path) as stream:
        value = unpickle(stream.file, path, stream.storages, stream.size)
        stream.finish(stream.file)
        return value


@contextmanager
def open_pickle(path: Path) -> Iterator[PickleStream]:
    """Open a file of either container.

    Raises:
        BadFile: it is neither.
    """
    with path.open("rb") as raw:
        if raw.read(4) != _LOCAL:
            raw.seek(0)
            yield _open_legacy(path, raw)
            return
        with one_door(path):
            stream = _open_zip(path, raw)
        yield stream


class _Window(io.RawIOBase):
    """`size` bytes of a file from `start` on; what is read to its end has to have the CRC that is stated.

    Args:
        crc: None where none was written.
    """

    def __init__(self, file: IO[bytes], start: int, size: int, crc: int | None) -> None:
        self._file = file
        self._left = size
        self._expected = crc
        self._crc = 0
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        window = memoryview(buffer)[: self._left]
        count: int = self._file.readinto(window)  # type: ignore[attr-defined]
        self._left -= count
        if self._expected is not None:
            self._crc = zlib.crc32(window[:count], self._crc)
            if self._left == 0 and self._crc != self._expected:
                raise Malformed("bytes that do not have the CRC-32 which the zip states")
        return count


def _open_zip(path: Path, raw: IO[bytes]) -> PickleStream:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except OSError as error:
        if error.errno == errno.EINVAL:  # A directory that is said to be before the file's start.
            raise bad_pickle(path, error) from error
        raise
    members = {member.filename: member for member in infos}
    if len(members) < len(infos):
        raise Malformed("a zip with several members of one name")
    mains = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(mains) != 1:
        raise BadFile(
            path,
            found=f"a zip with {len(mains)} members called NAME/data.pkl",
            expected="a file of torch.save, which has one",
            way_out="Point to the .pth file itself.",
        )
    storages = _ZipStorages(path, members, mains[0].removesuffix("data.pkl"))
    start, size, crc = storages.place(mains[0])
    file = io.BufferedReader(_Window(raw, start, size, crc), _BUFFER)
    return PickleStream(path, file, start, size, storages, False, _read_out)


def _read_out(file: IO[bytes]) -> None:
    """Read the rest of a file: its CRC is looked at when it ends."""
    while file.read(_BUFFER):
        pass


class _ZipStorages:
    """Storages that are members of a zip."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo], prefix: str) -> None:
        self._path = path
        self._members = members
        self._prefix = prefix
        self._kept: dict[str, np.ndarray] = {}
        self._size = self._budget = path.stat().st_size
        order = f"{prefix}byteorder"
        self._order: Literal["<", ">"] = ">" if order in members and self._read(order) == b"big" else "<"

    def get(self, key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """Return the member data/KEY; it is read once, as several tensors may share it."""
        if key not in self._kept:
            raw = self._read(f"{self._prefix}data/{key}")
            self._kept[key] = np.frombuffer(raw, dtype.newbyteorder(self._order))
        if len(self._kept[key]) != count or not _same(self._kept[key].dtype, dtype):
            raise Malformed(f"storage {key[:20]} with {len(self._kept[key])} numbers, not {count}")
        return self._kept[key]

    def place(self, name: str) -> tuple[int, int, int | None]:
        """Return offset, size and CRC-32 of a member's bytes; no CRC where torch was told not to write it."""
        member = self._members.get(name)
        if member is None:
            raise Malformed(f"no member {name[:60]}")
        # torch stores, so a compressed member is not its work, and could be a bomb.
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise BadFile(
                self._path,
                found=f"the compressed or encrypted member {name[:60]}",
                expected="stored members, as torch.save writes them",
                way_out="Fetch the file again from its source, or zip it anew without compression.",
            )
        if not 0 <= member.header_offset < self._size:
            raise Malformed(f"the member {name[:60]} where the file has nothing")
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(30)
        # Local header: the lengths of the name and of the extra field, which differs from that in the directory.
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = member.header_offset + 30 + lengths
        if header[:4] != _LOCAL or start + member.file_size > self._size or member.compress_size != member.file_size:
            raise Malformed(f"a zip that lies about its member {name[:60]}")
        return start, member.file_size, member.CRC or None

    def _read(self, name: str) -> bytes:
        start, size, crc = self.place(name)
        # Members may not overlap: together they cannot be more than the file.
        self._budget -= size
        if self._budget < 0:
            raise Malformed("members that are together larger than the file")
        with self._path.open("rb") as file, io.BufferedReader(_Window(file, start, size, crc)) as window:
            return window.read(size)


def _same(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    return a.kind == b.kind and a.itemsize == b.itemsize


def _open_legacy(path: Path, file: IO[bytes]) -> PickleStream:
    head = [_head(file, path) for _ in range(3)]
    if head[:2] != [_MAGIC_NUMBER, _PROTOCOL_VERSION]:
        raise _not_torch(path)
    start, left = file.tell(), _left(file)
    storages = _LegacyStorages(left)
    return PickleStream(path, file, start, left, storages, True, lambda rest: storages.fill(rest, path))


def _left(file: IO[bytes]) -> int:
    """Return how many bytes are behind where a file stands."""
    place = file.tell()
    left = file.seek(0, os.SEEK_END) - place
    file.seek(place)
    return left


def _head(file: IO[bytes], path: Path) -> object:
    try:
        return unpickle(file, path, NoStorages(), _left(file))
    except BadFile as error:
        if type(error) is not BadFile:
            raise
        raise _not_torch(path) from error


def _not_torch(path: Path) -> BadFile:
    return BadFile(
        path,
        found="neither a zip nor the magic number of torch's older format at its start",
        expected="a file of torch.save",
        way_out="Fetch the file again from its source: an HTML page or a Git LFS pointer may have been saved instead.",
    )


class _LegacyStorages:
    """Storages whose numbers come behind the pickle: made empty at first, filled at the end."""

    def __init__(self, budget: int) -> None:
        self._kept: dict[str, np.ndarray] = {}
        self._budget = budget

    def get(self, key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """Return the storage called `key`, its numbers still to come."""
        if key not in self._kept:
            self._budget -= count * dtype.itemsize
            if self._budget < 0:
                raise Malformed("storages that are together larger than the file")
            self._kept[key] = np.zeros(count, dtype.newbyteorder("<"))
        if len(self._kept[key]) != count or not _same(self._kept[key].dtype, dtype):
            raise Malformed(f"storage {key[:20]} with two sizes")
        return self._kept[key]

    def fill(self, file: IO[bytes], path: Path) -> None:
        """Read the keys and the numbers that stand behind the main pickle."""
        keys = unpickle(file, path, NoStorages(), _left(file))
        if not isinstance(keys, list) or {k for k in keys if isinstance(k, str)} != set(self._kept):
            raise bad_pickle(path, Malformed("a list of storage keys that does not fit"))
        for key in keys:
            numbers = self._kept[key]
            raw = file.read(8)
            if len(raw) != 8 or int.from_bytes(raw, "little") != len(numbers):
                raise bad_pickle(path, Malformed(f"a wrong count before storage {key[:20]}"))
            if numbers.nbytes != _fill(numbers, file):
                raise bad_pickle(path, EOFError(f"truncated in storage {key[:20]}"))


def _fill(numbers: np.ndarray, file: IO[bytes]) -> int:
    # memoryview cannot cast an empty array, nor one of a foreign byte order.
    raw = np.frombuffer(file.read(numbers.nbytes), np.uint8)
    if len(raw) == numbers.nbytes:
        numbers.view(np.uint8)[:] = raw
    return len(raw)
