"""Files that are whole or not there: written beside their final name, synced, renamed; with a fingerprint inside.

A fingerprint says what made a file (kind, part, source version, options, format version), never when, where or by
whom. It lies in the Parquet schema metadata as canonical JSON, so that two runs from the same sources give the same
bytes, and a reader can tell whether a file still belongs to its sources.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from laion_face_builder.errors import BadFile

FINGERPRINT_KEY = b"laion_face.fingerprint"
#: Raised when the layout of any of our files changes: older files are then rebuilt.
FORMAT_VERSION = 1

Fingerprint = dict[str, Any]


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def make_fingerprint(kind: str, **what: Any) -> Fingerprint:
    """A fingerprint of `kind` with the format version and whatever else defines the content."""
    return {"format": FORMAT_VERSION, "kind": kind, **what}


def digest(value: object, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    # Paths may have bytes that are no UTF-8, which Python keeps as surrogates.
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()[:length]


def stamped(schema: pa.Schema, fingerprint: Mapping[str, Any]) -> pa.Schema:
    """`schema` with `fingerprint` in its metadata."""
    return schema.with_metadata({FINGERPRINT_KEY: canonical_json(fingerprint).encode()})


def read_fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint of one of our Parquet files, None if there is no such file.

    Raises:
        BadFile: there is a file, but it is not one of ours.
    """
    if not path.exists():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
        return dict(json.loads(metadata[FINGERPRINT_KEY]))
    except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError) as error:
        raise BadFile(
            path,
            found=f"no fingerprint ({type(error).__name__})",
            expected="a Parquet file written by laion-face",
            way_out="Move it away and run `laion-face prepare` again.",
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; when the block ends well, it is synced and becomes `path`.

    After an exception nothing is left; after a kill only a file called `.NAME.….partial`, which nobody reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path, name: str = "") -> None:
    """Removes what killed writers left in `folder`, or of its file `name`. Call it only while holding the lock."""
    for partial in folder.glob(f".{name}*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Holds the lock file beside `path`, waiting for whoever has it: two processes never make the same file at once.

    `waiting` is said, as a warning, before it waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path.with_name(f".{path.name}.lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            logging.getLogger("laion_face").warning("%s", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Holds the lock file beside `path` if nobody else does; gives whether it does."""
    lock = FileLock(str(path.with_name(f".{path.name}.lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes in hex, read in pieces."""
    with path.open("rb") as file:
        hasher = hashlib.sha256()
        while piece := file.read(1 << 22):
            hasher.update(piece)
    return hasher.hexdigest()


def disk_free(folder: Path) -> int:
    """Bytes that are free on the disk of `folder`, or of the folder in which it would be made."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free


def human_size(count: int | float) -> str:
    """A number of bytes for people, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
