"""Hash files: git's hashes, and SHA-256s of files that are not ours, computed once and remembered.

Hashing 50 GB of metadata again at every run would take minutes.

sources/.hashes/
  <hex of the path>.json   size and time of change of the file when it was hashed, and its SHA-256
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from pathlib import Path

from laion_face_builder.files import canonical_json, digest, human_size, sha256_of, written_whole
from laion_face_builder.log import logger

#: Hashing so many bytes or more takes long enough to be logged.
_SAID = 100_000_000


def known_sha256(path: Path, folder: Path, *, remember: bool = True) -> str:
    """Return a file's SHA-256 in hex, remembered below `folder` until its size or time of change is another.

    Args:
        remember: False writes no note: what is not noted is then hashed once in this process.
    """
    path = path.resolve()
    status = path.stat()
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = _note(path, folder)
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if {name: known[name] for name in seen} == seen:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Not hashed yet, or a note that cannot be read.
    if not remember:
        return _hashed_once(path, **seen)
    sha256 = _hashed(path, status.st_size)
    with contextlib.suppress(OSError), written_whole(note) as partial:  # Without a note it is hashed again.
        partial.write_text(canonical_json({**seen, "sha256": sha256}), encoding="utf-8")
    return sha256


def forget_sha256(path: Path, folder: Path) -> None:
    """Have a file hashed again by the next `known_sha256`."""
    with contextlib.suppress(OSError):
        _note(path.resolve(), folder).unlink(missing_ok=True)


def _note(path: Path, folder: Path) -> Path:
    return folder / ".hashes" / f"{digest(str(path))}.json"


@functools.lru_cache(maxsize=1024)
def _hashed_once(path: Path, size: int, mtime_ns: int) -> str:
    return _hashed(path, size)


def _hashed(path: Path, size: int) -> str:
    if size >= _SAID:
        logger.info("hashing %s (%s), to know it again", path, human_size(size))
    return sha256_of(path)


def git_hash(path: Path) -> str:
    """Return git's hash of a small file that is not in LFS: SHA-1 of a header and the bytes."""
    return git_hash_of(path.read_bytes())


def git_hash_of(content: bytes) -> str:
    """Return git's hash of bytes that need not be in a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
