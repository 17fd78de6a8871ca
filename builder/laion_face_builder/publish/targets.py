"""Publish to a place and read it again: the interface of all places, and the one that is a folder.

FOLDER/
  README.md, data/part-00000.parquet, …   under the names of the `OutgoingFile`s
  .publish.lock                           two publishers never write here at once
  data/.part-00000.parquet.….partial      a copy that was going on when its process was killed; the next send removes it

A copy is hashed while it is made, synced and renamed: a file under its final name has the bytes that were to be sent.

    place = destination.destination_at("owner/laion-face", private=True)
    place.send([OutgoingFile.of("data/part-00000.parquet", path)], "Add part 0")
    assert place.check(everything) == []

An interrupted publish can simply be run again: what stands there whole, by size and SHA-256, is not sent again, and
nothing half-sent is ever seen under its name. The folder is here, the Hub in `hub_target`; `destination`
chooses between them.

A published place is read as small files, whole, and Parquet files by address.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from laion_face_builder import progress
from laion_face_builder.errors import BadFile, DiskError, OptionError, PublishError, SourceNotFound
from laion_face_builder.files import locked, pieces_of, remove_partials, sha256_of, written_whole
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.progress.base import Bar
from laion_face_builder.publish.manifest import MANIFEST, Manifest
from laion_face_builder.publish.overtaken import Basis
from laion_face_builder.shown import harmless, short
from laion_face_builder.sources.fsspec_folder import filesystem_of
from laion_face_builder.sources.hub import HubRepo, Token
from laion_face_builder.sources.retrying import TransientError, retried
from laion_face_builder.values import absolute

T = TypeVar("T")


@dataclass(frozen=True)
class OutgoingFile:
    """One local file that is to stand in the published place.

    Args:
        name: its posix path there, such as "data/part-00000.parquet" or "README.md".
        path: the local file, whole; it may not change until it is sent.
        size: bytes.
        sha256: of its bytes, in hex.
    """

    name: str
    path: Path
    size: int
    sha256: str

    def __post_init__(self) -> None:
        # Hidden files are the place's own: half-written files and locks in a folder, .gitattributes on the Hub.
        if "\\" in self.name or any(part.startswith(".") or not part for part in self.name.split("/")):
            raise OptionError(f"{self.name!r} is no name of a published file; expected a path like data/x.parquet")

    @classmethod
    def of(cls, name: str, path: Path) -> OutgoingFile:
        """Measure and hash the file at `path`, to be sent as `name`: 1.5 GB take about a second.

        Raises:
            OptionError: `name` leads out of the place, or is no path in it.
        """
        return cls(name, path, path.stat().st_size, sha256_of(path))

    def changed(self, found: str) -> BadFile:
        """Make the error for a file that now has the SHA-256 `found`."""
        expected = f"{self.sha256}, as it was when the publish began"
        way_out = "Let nothing else write to it and publish again."
        return BadFile(self.path, found=f"SHA-256 {found}", expected=expected, way_out=way_out)


@dataclass(frozen=True)
class PublishedFile:
    """One file that stands in the published place.

    Args:
        size: bytes.
        sha256: in hex; None where it is not known without reading the file.
        git_sha1: what git names the content by; the Hub states it for the small files that are not in LFS.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


def missing(files: Sequence[OutgoingFile], held: Mapping[str, PublishedFile]) -> list[OutgoingFile]:
    """Give those of `files` that are not among `held`, by name, size and SHA-256, in their order.

    Raises:
        OptionError: two files have one name.
    """
    if len({file.name for file in files}) < len(files):
        twice = sorted({file.name for file in files if [other.name for other in files].count(file.name) > 1})
        raise OptionError(f"two files to publish under one name: {', '.join(twice)}")
    return [file for file in files if problem(file, held.get(file.name))]


def problem(file: OutgoingFile, held: PublishedFile | None) -> str | None:
    """Say in one line how `held` differs from `file`; None if it does not."""
    if held is None:
        return f"{file.name}: is not there"
    if held.size != file.size:
        return f"{file.name}: found {held.size} bytes, expected {file.size}"
    if held.sha256 != file.sha256:
        found = f"SHA-256 {held.sha256}" if held.sha256 else "other content, or none that can be compared"
        return f"{file.name}: found {found}, expected SHA-256 {file.sha256}"
    return None


def problems(files: Sequence[OutgoingFile], held: Mapping[str, PublishedFile]) -> list[str]:
    """List every `problem` of `files`, in their order."""
    return [line for file in files if (line := problem(file, held.get(file.name)))]


class Destination(Protocol):
    """A published place. All methods raise a LaionFaceError that says what to do."""

    def listing(self) -> dict[str, PublishedFile]:
        """List what is there now, by name; {} if the place does not exist yet."""
        ...

    def send(self, files: Sequence[OutgoingFile], message: str, basis: Basis | None = None) -> int:
        """Send those files that are not there yet, by size and SHA-256, in one commit; make the place if need be.

        Args:
            files: no two of one name.
            message: the commit's.
            basis: what they were made for; None sends them whatever is there.

        Returns:
            How many bytes of files were sent: 0 if all stood there.
        """
        ...

    def lacks(self, files: Sequence[OutgoingFile]) -> list[OutgoingFile]:
        """Give those of `files` that `send` would send; nothing is made or changed."""
        ...

    def remove(self, names: Sequence[str], message: str, basis: Basis | None = None) -> None:
        """Remove files of an earlier publish, in one commit; names that are not there are skipped."""
        ...

    def check(self, files: Sequence[OutgoingFile]) -> list[str]:
        """List problems, one line each: a file missing, of another size or of another SHA-256; [] if all is well.

        Args:
            files: what is to be there. Local Parquet files may be gone; the local small texts, which the Hub keeps
                without a SHA-256, are read.
        """
        ...


def is_folder(target: str) -> bool:
    """Say whether `target` means a folder; see `destination`."""
    if "://" in target:  # Else a folder would be made, under a name that has the password in it.
        return False
    written_so = target.startswith((os.sep, ".", "~")) or target.endswith(("/", os.sep))
    return written_so or (target != "" and Path(target).is_dir())


@dataclass(frozen=True)
class PublishedPlace:
    """Where published files are read from.

    Args:
        folder: the folder, if it is one.
        repo: the Hub dataset at a revision, if it is that.
    """

    folder: Path | None
    repo: HubRepo | None

    @classmethod
    def at(cls, target: str, revision: str | None = None, token: Token = None) -> PublishedPlace:
        """Give the place that `target` means, as `destination.destination_at` understands it."""
        if is_folder(target):
            return cls(absolute(target), None)
        return cls(None, HubRepo(target, revision, token))

    @property
    def name(self) -> str:
        """Name of the place, for messages."""
        return str(self.folder) if self.folder is not None else f"Hub dataset {self._hub.repo}"

    def require(self) -> None:
        """Check that the place is there at all, if it is on the Hub.

        Raises:
            SourceNotFound: no such repo, or no such revision; SourceError: the Hub does not answer, or refuses.
        """
        if self.folder is None:
            _ = self._hub.commit

    def read(self, name: str) -> bytes | None:
        """Read the bytes of a small file; None if there is no such file or no such place.

        Raises:
            SourceError: the Hub does not answer, or refuses.
        """
        if self.folder is not None:
            path = self.folder / name
            return path.read_bytes() if path.is_file() else None
        try:
            if name not in self._hub.files:
                return None
        except SourceNotFound:
            return None
        return bytes(_asked(lambda system, path: system.cat_file(path), self.address(name), self._hub.token))

    def manifest(self) -> Manifest | None:
        """Read what the place says that it holds; None if nothing was published there.

        Raises:
            BadFile: its manifest cannot be read; SourceError: see `read`.
        """
        text = self.read(MANIFEST)
        return Manifest.from_text(text, self.name) if text is not None else None

    def address(self, name: str) -> str:
        """Give the path, or the hf:// address at the commit that was first seen."""
        if self.folder is not None:
            return str(self.folder / name)
        return f"hf://datasets/{self._hub.repo}@{self._hub.commit}/{name}"

    def parquet(self, name: str) -> OpenParquet:
        """Open the file for reading; pages are checked against their checksums. The caller has to close it."""
        if self.folder is not None:
            return OpenParquet(self.folder / name)
        return _asked(
            lambda system, path: OpenParquet(system.open(path, "rb", cache_type="none"), pre_buffer=True),
            self.address(name),
            self._hub.token,
        )

    @property
    def _hub(self) -> HubRepo:
        if self.repo is None:
            raise TypeError("a folder is no Hub dataset")
        return self.repo


def _asked(ask: Callable[[Any, str], T], address: str, token: Token) -> T:
    def attempt() -> T:
        system, path = filesystem_of(address, token)
        try:
            return ask(system, path)
        except Exception as error:  # Every filesystem raises errors of its own libraries.
            raise TransientError(short(f"{type(error).__name__}: {error}", 200)) from harmless(error)

    return retried(attempt, address)


@dataclass(frozen=True)
class FolderDestination:
    """The folder `path`, made when something is sent."""

    path: Path

    def listing(self) -> dict[str, PublishedFile]:
        """List every file but hidden ones, with its size alone: to hash a whole published set takes a minute."""
        found = (file.relative_to(self.path) for file in sorted(self.path.rglob("*")) if file.is_file())
        shown = [name for name in found if not any(part.startswith(".") for part in name.parts)]
        return {name.as_posix(): PublishedFile((self.path / name).stat().st_size) for name in shown}

    def send(self, files: Sequence[OutgoingFile], message: str, basis: Basis | None = None) -> int:
        """Copy what is not there yet, the README last, since it names the others.

        Raises:
            StateConflict: it is not `basis` any more.
            PublishError: the folder cannot be written, or its disk is full.
            BadFile: a file is no longer what it was when it was hashed.
        """
        with self._writing():
            for folder in (self.path, *(path for path in self.path.rglob("*") if path.is_dir())):
                remove_partials(folder)  # A killed publish of other parts may have left any row.
            left = sorted(self.lacks(files), key=lambda file: file.name == "README.md")
            self._require(basis if left else None)
            total = sum(file.size for file in left)
            with progress.bar(message, total, "B") as bar:
                for file in left:
                    self._copy(file, bar)
        return total

    def lacks(self, files: Sequence[OutgoingFile]) -> list[OutgoingFile]:
        """Give those that are not there, or have other bytes; files of the same name and size are read."""
        return missing(files, self._measured(files))

    def remove(self, names: Sequence[str], message: str, basis: Basis | None = None) -> None:
        """Delete the files, and folders that are empty then.

        Raises:
            StateConflict: it is not `basis` any more.
            PublishError: the folder cannot be written.
        """
        with self._writing():
            self._require(basis)
            for name in sorted(self.listing().keys() & set(names)):
                (self.path / name).unlink()
                for folder in (self.path / name).parents:
                    if folder == self.path or any(folder.iterdir()):
                        break
                    folder.rmdir()

    def check(self, files: Sequence[OutgoingFile]) -> list[str]:
        """List problems, one line each; every file is read again."""
        return problems(files, self._measured(files))

    def _measured(self, files: Sequence[OutgoingFile]) -> dict[str, PublishedFile]:
        """List what is there, with the SHA-256 of those of `files` whose size is right."""
        held = self.listing()
        same = [file.name for file in files if file.name in held and held[file.name].size == file.size]
        reading = progress.bar("check", len(same), "file").counting(same)
        return held | {name: PublishedFile(held[name].size, sha256_of(self.path / name)) for name in reading}

    def _require(self, basis: Basis | None) -> None:
        path = self.path / MANIFEST
        if basis is not None:
            basis.require(str(self.path), (sha256_of(path), None) if path.is_file() else None)

    def _copy(self, file: OutgoingFile, bar: Bar) -> None:
        hasher = hashlib.sha256()
        with written_whole(self.path / file.name) as partial:
            with partial.open("wb") as copy:
                for piece in pieces_of(file.path):
                    hasher.update(piece)
                    copy.write(piece)
                    bar.update(len(piece))
            if hasher.hexdigest() != file.sha256:
                raise file.changed(hasher.hexdigest())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with locked(self.path / "publish", f"another publish to {self.path} is going on; waiting for it"):
                yield
        except DiskError as error:
            raise PublishError(f"{error}; what was copied is kept") from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = "Free some space" if full else "Give a folder that can be written to"
            what = f"{error.strerror or error}: {error.filename or self.path}"
            raise PublishError(f"{self.path}: {what}. {way_out} and publish again: what was copied is kept.") from error
