"""Copy a file from upstream: fetched in resumable pieces, checked, kept under DATA_DIR/sources.

sources/
  OWNER--NAME/FILE                 a whole, checked file
  OWNER--NAME/.FILE.checked        its version, SHA-256, size and time of change when it was checked; stays when the
                                   copy is discarded, so that its content is still known
  OWNER--NAME/.FILE.<hex>.incomplete   what has come so far; <hex> stands for the version, so versions never mix

A copy goes on where it was cut, also after a kill. huggingface_hub 2.4 does not do that: each process writes to a
file name of its own and removes it (or leaves it, after a kill), so 900 MB would start from nothing again.

A file is looked up, fetched, and known again by its bytes wherever they are from. What should be Parquet has a footer
at its end: a cut copy, or a web page in its place, has none.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laion_face_builder import progress
from laion_face_builder.errors import BadFile, ChecksumError, SourceError
from laion_face_builder.files import (
    canonical_json,
    digest,
    disk_errors,
    locked,
    remove_partials,
    sha256_of,
    written_whole,
)
from laion_face_builder.log import logger
from laion_face_builder.progress.base import Bar
from laion_face_builder.sources.hashes import known_sha256
from laion_face_builder.sources.retrying import TransientError, pause

_MAGIC = b"PAR1"


def check_footer(path: Path) -> None:
    """Check the last 8 bytes of a Parquet file.

    Raises:
        BadFile: there is no footer, or one that is larger than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 8, 0))
        tail = file.read()
    if size < 12 or tail[4:] != _MAGIC or int.from_bytes(tail[:4], "little") > size - 12:
        raise BadFile(
            path,
            found=f"{size} bytes that do not end in a Parquet footer",
            expected="a whole Parquet file",
            way_out="Remove it and copy it again, or name another copy with metadata=.",
        )


@dataclass(frozen=True)
class RemoteFile(ABC):
    """A file of upstream, looked up but not yet fetched.

    Attributes:
        name: what people call it: repo and file, address or path.
        size: bytes, None if the server does not say.
        version: changes when the content does, at this place: "sha256:…", "git:…", "etag:…" or "modified:…". Tells
            whether a copy is still good; what the bytes are is told by `content`.
    """

    name: str
    size: int | None
    version: str

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether the file is the user's own, used where it lies and never deleted."""

    @abstractmethod
    def fetch(self, folder: Path) -> Path:
        """Return the whole, checked file; copied below `folder` (DATA_DIR/sources) if it is not local.

        Raises:
            SourceError: it cannot be had; ChecksumError: its bytes are not what upstream states.
        """

    @abstractmethod
    def missing(self, folder: Path) -> int | None:
        """Return how many bytes `fetch` still has to bring, None if unknown."""

    @abstractmethod
    def discard(self, folder: Path) -> None:
        """Remove the copy below `folder`; does nothing for local files."""

    @abstractmethod
    def doubt(self, folder: Path) -> None:
        """Remove the copy that `fetch` gave, which cannot be read, unless its bytes are certainly upstream's.

        Then the next run fetches it again. Does nothing for local files.
        """

    @abstractmethod
    def content(self, folder: Path, *, remember: bool = True) -> str | None:
        """Return "sha256:<hex>" of the bytes; None if that cannot be told before they have been fetched.

        Equal bytes are the same source, whatever they are called and wherever they lie. After `fetch` it is known, also
        when the copy has been discarded since, until `version` changes. Notes are kept below `folder`; False for
        `remember` writes none.
        """


@dataclass(frozen=True)
class LocalFile(RemoteFile):
    """A file of the user's own."""

    path: Path

    @property
    def is_local(self) -> bool:
        """True: the file is the user's own."""
        return True

    def fetch(self, folder: Path) -> Path:
        """Return the file where it lies."""
        return self.path

    def missing(self, folder: Path) -> int:
        """Return 0: nothing has to be fetched."""
        return 0

    def discard(self, folder: Path) -> None:
        """Do nothing: the file is not ours."""

    def doubt(self, folder: Path) -> None:
        """Do nothing: the file is not ours."""

    def content(self, folder: Path, *, remember: bool = True) -> str:
        """Return the SHA-256, remembered until the file's size or time of change is another."""
        return f"sha256:{known_sha256(self.path, folder, remember=remember)}"


def local_file(path: Path) -> LocalFile:
    """Describe a file of the user's own, which is there."""
    path = path.absolute()
    status = path.stat()
    return LocalFile(str(path), status.st_size, f"modified:{status.st_mtime_ns};{status.st_size}", path)


#: Tries in a row that bring less than `PROGRESS` bytes before a copy is given up.
ATTEMPTS = 6
PROGRESS = 1 << 20
#: Versions that are hashes of the bytes.
_HASHED = ("sha256:", "git:")
#: Bytes read, and written, at a time.
PIECE = 1 << 20


@dataclass(frozen=True)
class CopiedFile(RemoteFile):
    """A file that has to be copied: subclasses say where to, how to read it from an offset, and how to check it."""

    @property
    def is_local(self) -> bool:
        """False: it has to be copied."""
        return False

    @abstractmethod
    def place(self, folder: Path) -> Path:
        """Return the path of the copy below `folder`."""

    @abstractmethod
    def pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) in order, from `start` or, if the server cannot do that, from 0.

        Raises:
            TransientError: another try may help; SourceError: none would.
        """

    @abstractmethod
    def mismatch(self, path: Path) -> str | None:
        """Say what is wrong with the bytes of the copy; None if they are what upstream states."""

    def fetch(self, folder: Path) -> Path:
        """Return the whole, checked copy; it is checked again only if it has changed since."""
        target = self.place(folder)
        with locked(target):
            if not self._is_checked(target):
                self._check(target)
        return target

    def missing(self, folder: Path) -> int | None:
        """Return the size less what is there, as far as `fetch` can go on with it; None if the size is unknown."""
        target = self.place(folder)
        if self._is_checked(target):
            return 0
        if self.size is None:
            return None
        if _size(target) == self.size and not self._is_of_another_version(_note(target)):
            return 0
        come = _size(self._incomplete(target))
        return self.size - come if come <= self.size else self.size

    def content(self, folder: Path, *, remember: bool = True) -> str | None:
        """Return the digest that upstream states, or that was found when the copy was checked."""
        if self.version.startswith("sha256:"):
            return self.version
        target = self.place(folder)
        if self._is_checked(target) and "sha256" not in self._noted(target):
            if not remember:
                return f"sha256:{known_sha256(target, folder, remember=False)}"
            with locked(target):  # A note of an earlier version of this program.
                if self._is_checked(target):
                    self._remember(target)
        sha256 = self._noted(target).get("sha256")
        return sha256 and f"sha256:{sha256}"

    def discard(self, folder: Path) -> None:
        """Remove the copy and all that belongs to it; the digest of its content stays known."""
        target = self.place(folder)
        if not target.exists() and not _checked_file(target).exists() and not _size(self._incomplete(target)):
            return
        known_from_note = self.content(folder) not in (None, self.version)
        with locked(target), disk_errors(target):
            if not known_from_note:
                _checked_file(target).unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            self._forget_incomplete(target)

    def doubt(self, folder: Path) -> None:
        """Remove the copy unless upstream states a hash, and it still has that."""
        target = self.place(folder)
        with locked(target):
            if not target.exists() or (self.version.startswith(_HASHED) and self.mismatch(target) is None):
                return
            logger.warning("%s: its copy was removed, to be fetched again by the next run", self.name)
            with disk_errors(target):
                _checked_file(target).unlink(missing_ok=True)
                target.unlink()

    def _check(self, target: Path) -> None:
        """Copy the file unless it is there, and check it; wrong bytes are removed and get one more try."""
        if target.exists() and not self._is_good(target):
            target.unlink()  # Of another version, or changed by somebody.
        for attempt in range(2):
            if not target.exists():
                self._copy(target)
            problem = self.mismatch(target)
            if problem is None:
                return self._remember(target)
            target.unlink()
            if attempt == 0:
                logger.warning("%s: %s; it is fetched again", self.name, problem)
        raise ChecksumError(
            f"{self.name}: {problem}, twice; the copy was removed. Try again later, or report it there."
        )

    def _copy(self, target: Path) -> None:
        incomplete = self._incomplete(target)
        logger.info("fetching %s", self.name)
        with disk_errors(incomplete):  # Errors of the network have become TransientErrors.
            target.parent.mkdir(parents=True, exist_ok=True)
            with progress.bar(target.name, self.size, "B", done=_size(incomplete)) as bar:
                self._fill(incomplete, bar)
            os.replace(incomplete, target)
        self._forget_incomplete(target)

    def _fill(self, incomplete: Path, bar: Bar) -> None:
        """Fetch until the file is whole; give up after ATTEMPTS tries in a row that brought next to nothing."""
        failures = 0
        while True:
            before = _size(incomplete)
            try:
                self._append(incomplete, bar)
                problem = TransientError(f"the connection was cut after {_size(incomplete)} of {self.size} bytes")
            except TransientError as error:
                problem = error
            else:
                if self.size is None or _size(incomplete) == self.size:
                    return
            failures = 0 if _size(incomplete) - before >= PROGRESS else failures + 1
            if failures >= ATTEMPTS:
                raise SourceError(
                    f"{self.name}: {problem}; gave up after {ATTEMPTS} tries. What has come is kept: run it again."
                ) from problem
            pause(max(failures - 1, 0), problem)

    def _append(self, incomplete: Path, bar: Bar) -> None:
        with incomplete.open("ab") as file:
            have = file.tell()
            if self.size is None or have > self.size:  # Without a size nobody can tell whether it is whole.
                have = file.truncate(0)
            if have == self.size:
                return
            for offset, piece in self.pieces(have):
                if offset != have:  # The server began anew.
                    have = file.truncate(offset)
                have += file.write(piece)
                bar.advance_to(have)

    def _incomplete(self, target: Path) -> Path:
        return target.with_name(f".{target.name}.{digest(self.version, 12)}.incomplete")

    def _forget_incomplete(self, target: Path) -> None:
        remove_partials(target.parent, f"{target.name}.", "incomplete")

    def _is_checked(self, target: Path) -> bool:
        """Tell whether the file is the very one that was checked against this version.

        A changed file has another size or time of change, a half-written note does not parse: both are checked again.
        """
        try:
            return self._noted(target).items() >= _seen(target).items()
        except OSError:
            return False

    def _is_good(self, target: Path) -> bool:
        """Tell whether a copy that was not checked as it is now can be used all the same."""
        noted = _note(target)
        if self._is_of_another_version(noted):
            return False
        if "sha256" in self._noted(target):
            return bool(noted["sha256"] == sha256_of(target))
        return self.mismatch(target) is None

    def _is_of_another_version(self, noted: dict[str, Any]) -> bool:
        version = str(noted.get("version", self.version))
        return version != self.version and version.partition(":")[0] == self.version.partition(":")[0]

    def _remember(self, target: Path) -> None:
        kind, _, stated = self.version.partition(":")
        sha256 = stated if kind == "sha256" else sha256_of(target)
        note = _checked_file(target)
        remove_partials(note.parent, note.name)
        with written_whole(note) as partial:
            partial.write_text(
                canonical_json({"version": self.version, "sha256": sha256, **_seen(target)}), encoding="utf-8"
            )

    def _noted(self, target: Path) -> dict[str, Any]:
        """Return the note of this very version; {} if there is none."""
        note = _note(target)
        return note if note.get("version") == self.version else {}


def _checked_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.checked")


def _note(target: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_checked_file(target).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _seen(target: Path) -> dict[str, int]:
    status = target.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
