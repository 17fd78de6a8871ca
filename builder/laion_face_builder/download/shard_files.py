"""Write the tar of a shard, find what lies in it, and tell which shards are whole.

Tars are laid out as img2dataset does, each sample in one write. img2dataset's own writer took seven times the CPU for
the same members (420 us a picture of 46 KB, this 57): it has JSON indented, which only Python's slow encoder does, and
`tarfile` writes a second header for times with fractions.

Where members lie is read from the headers alone: tens of thousands a second, nothing unpacked. Half-written tars open
without error everywhere. Here a tar is read to its end mark, and every member has to lie wholly inside the file;
anything else is a `BadFile`.

FOLDER/
  00000.tar  00000.parquet  00000_stats.json     one shard; the stats are written last
  _tmp/                                          what a run that was killed had not finished

img2dataset, which wrote shards for earlier versions, leaves half-written tars under their final names when it is
killed. A shard is whole if its stats can be parsed, the count in them is that of the rows in its
parquet and of the rows asked for, and its successes are the pictures in its tar, which has an end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile

BLOCK = 512
_END = bytes(BLOCK)
#: Where a header has the sum of its bytes, with blanks for the sum itself.
CHECKSUM = slice(148, 156)


@dataclass(frozen=True)
class Member:
    """One file in a tar: its name, where its bytes start, and how many they are."""

    name: str
    offset: int
    length: int

    @property
    def key(self) -> str:
        """What the files of one sample share: the name up to the first dot after the last slash."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def extension(self) -> str:
        """What follows the key and a dot, in lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def read_members(path: Path) -> list[Member]:
    """List the regular files in the tar at `path`, in its order. Old, USTAR, GNU and pax headers are understood.

    Raises:
        BadFile: the file is cut off, or not a tar.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(_members(path, descriptor, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def whole_members(path: Path) -> tuple[list[Member], BadFile | None]:
    """List the files in a tar up to where it is broken off, and what is wrong there; None if it is whole."""
    descriptor = os.open(path, os.O_RDONLY)
    members: list[Member] = []
    try:
        for member in _members(path, descriptor, os.fstat(descriptor).st_size):
            members.append(member)
    except BadFile as broken:
        return members, broken
    finally:
        os.close(descriptor)
    return members, None


def _members(path: Path, descriptor: int, size: int) -> Iterator[Member]:
    position, long_name, long_size = 0, "", -1
    while True:
        header = os.pread(descriptor, BLOCK, position)
        if header == _END:
            return
        if len(header) < BLOCK:
            raise _broken(path, f"no end mark after {position} bytes")
        length = _length(path, header, position)
        kind = header[156:157]
        if kind in b"0\0" and long_size >= 0:
            length = long_size
        start = position + BLOCK
        if start + length > size:
            raise _broken(path, f"a member of {length} bytes at {start} in a file of {size}")
        if kind == b"L":
            long_name = _text(os.pread(descriptor, length, start))
        elif kind == b"x":
            long_name, long_size = _pax(os.pread(descriptor, length, start))
        elif kind in b"0\0":
            yield Member(long_name or _name(header), start, length)
            long_name, long_size = "", -1
        position = start + -(-length // BLOCK) * BLOCK


def _length(path: Path, header: bytes, position: int) -> int:
    try:
        stated = int(header[CHECKSUM].strip(b" \0"), 8)
        if stated != sum(header) - sum(header[CHECKSUM]) + 8 * 0x20:
            raise ValueError
        if header[124] & 0x80:  # GNU's form for sizes of 8 GiB and more
            return int.from_bytes(header[125:136], "big")
        return int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        raise _broken(path, f"no tar header at byte {position}") from None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(records: bytes) -> tuple[str, int]:
    """Return name and size in a pax header; empty and -1 where it has none.

    A record is `LENGTH KEY=VALUE` and a newline.
    """
    name, size = "", -1
    while records:
        digits, _, _ = records.partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits):
            break
        key, _, value = records[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            size = int(value)
        records = records[int(digits) :]
    return name, size


def _broken(path: Path, found: str) -> BadFile:
    return BadFile(path, found=found, expected="a whole tar", way_out="It was cut off: download it again.")


_OURS = re.compile(r"(\d{5,})(\.tar|\.parquet|_stats\.json)")
#: What is being written in `_tmp`: a shard, and whose.
_BEGUN = re.compile(r"(\d{5,})\.[0-9a-f]{8}")
#: Extensions that img2dataset gives to pictures (its encode_format), and what other tools write.
PICTURE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard."""

    folder: Path
    number: int

    @property
    def tar(self) -> Path:
        """Pictures, captions and metadata of the successes."""
        return self.folder / f"{self.number:05d}.tar"

    @property
    def parquet(self) -> Path:
        """One row for every sample, failures too."""
        return self.folder / f"{self.number:05d}.parquet"

    @property
    def stats(self) -> Path:
        """Counts; the last file that is written."""
        return self.folder / f"{self.number:05d}_stats.json"

    def stats_digest(self) -> str | None:
        """Return a digest that tells one download of this shard from another; None while its stats cannot be parsed."""
        try:
            text = self.stats.read_bytes()
            json.loads(text)
        except (OSError, ValueError):
            return None
        return hashlib.sha256(text).hexdigest()[:16]

    def remove(self) -> None:
        """Remove all of its files, the stats first, so that no kill in between leaves a shard that looks done."""
        for file in (self.stats, self.parquet, self.tar):
            file.unlink(missing_ok=True)


def shard_sizes(samples: int, samples_per_shard: int) -> list[int]:
    """Return how many samples each shard has, of `samples` in all."""
    return [min(samples_per_shard, samples - first) for first in range(0, samples, samples_per_shard)]


def pictures_in(members: Sequence[Member]) -> dict[str, Member]:
    """Return the pictures among a tar's members, by key."""
    return {member.key: member for member in members if member.extension in PICTURE_EXTENSIONS}


def require_whole(shard: ShardFiles, samples: int, members: Sequence[Member]) -> None:
    """Raise BadFile if the counts of stats, parquet and tar differ; `members` are those of a tar read to its end.

    Raises:
        BadFile: says which count differs.
    """
    count, successes = _counts(shard.stats)
    pictures = len(pictures_in(members))
    try:
        rows = int(pq.read_metadata(shard.parquet).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise _not_whole(shard.parquet, f"no readable table ({error})", f"{count} rows") from error
    if count != samples:
        raise _not_whole(shard.stats, f"a count of {count}", f"{samples}")
    if rows != count:
        raise _not_whole(shard.parquet, f"{rows} rows", f"{count}")
    if pictures != successes:
        raise _not_whole(shard.tar, f"{pictures} pictures", f"{successes}")


def _counts(stats: Path) -> tuple[int, int]:
    try:
        values: Any = json.loads(stats.read_bytes())
        return int(values["count"]), int(values["successes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_whole(stats, f"no stats ({type(error).__name__})", "JSON with count and successes") from error


def _not_whole(file: Path, found: str, expected: str) -> BadFile:
    return BadFile(file, found=found, expected=expected, way_out="The shard is downloaded again.")


def shards_in(paths: Iterable[Path]) -> list[int]:
    """Return the numbers, ascending, of the shards that any of these files are of."""
    return sorted({int(named[1]) for path in paths if (named := _OURS.fullmatch(path.name))})


def remove_unfinished(folder: Path, kept: Collection[int], share: Container[int] | None = None) -> None:
    """Remove the share's shards that are not in `kept`, and what was being written; without a share, of all shards."""
    remove_half_written(folder, share)
    for number in shards_in(folder.iterdir() if folder.is_dir() else ()):
        if number not in kept and (share is None or number in share):
            ShardFiles(folder, number).remove()


def remove_half_written(folder: Path, share: Container[int] | None = None) -> None:
    """Remove what killed processes had begun to write, of the share or of all; nobody may be writing it."""
    if share is None:
        shutil.rmtree(folder / "_tmp", ignore_errors=True)
    for begun in folder.glob("_tmp/*.*"):
        named = _BEGUN.fullmatch(begun.name)
        if share is not None and named and int(named[1]) in share:
            shutil.rmtree(begun, ignore_errors=True)


def end_mark(position: int) -> bytes:
    """Return what ends a tar of so many bytes: the mark, and what fills it up to a multiple of 20 blocks."""
    return bytes(2 * BLOCK + -(position + 2 * BLOCK) % tarfile.RECORDSIZE)


_NAME = slice(0, 100)
_SIZE = slice(124, 136)
#: As webdataset's writer has it.
_OWNER, _MODE = "bigdata", 0o444


class ShardTar:
    """Writes the samples of a shard: `KEY.EXTENSION`, `KEY.json` and `KEY.txt` of each.

    Args:
        path: the tar to write.
        extension: of all its pictures.
        seconds: modification time of all members, seconds since 1970.
    """

    def __init__(self, path: Path, extension: str, seconds: int) -> None:
        template = tarfile.TarInfo()
        template.mtime, template.mode, template.uname, template.gname = seconds, _MODE, _OWNER, _OWNER
        header = bytearray(template.tobuf(tarfile.USTAR_FORMAT))
        header[CHECKSUM] = b" " * 8
        self._template, self._extension = bytes(header), extension
        self._file = path.open("wb")
        self._position = 0

    def write(
        self,
        key: str,
        picture: bytes,
        values: Mapping[str, Any],
        caption: str | None,
        more: Mapping[str, bytes] | None = None,
    ) -> Member:
        """Add a sample, and `more` files of it by extension; return where its picture lies."""
        member = Member(f"{key}.{self._extension}", self._position + BLOCK, len(picture))
        data = b"".join(
            (
                *self._pieces(member.name, picture),
                *self._pieces(f"{key}.json", json.dumps(values).encode()),
                *self._pieces(f"{key}.txt", (caption or "").encode(errors="replace")),
                *(piece for name, content in (more or {}).items() for piece in self._pieces(f"{key}.{name}", content)),
            )
        )
        self._file.write(data)
        self._position += len(data)
        return member

    def _pieces(self, name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
        header = bytearray(self._template)
        header[_NAME] = name.encode().ljust(100, b"\0")
        header[_SIZE] = b"%011o\0" % len(content)
        header[CHECKSUM] = b"%06o\0 " % sum(header)
        return bytes(header), content, bytes(-len(content) % BLOCK)

    def finish(self) -> None:
        """Write what ends a tar, and close the file."""
        self._file.write(end_mark(self._position))
        self.close()

    def close(self) -> None:
        """Close the file, whole or not."""
        self._file.close()
