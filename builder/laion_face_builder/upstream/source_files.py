"""Describe one file from upstream: looked up, to be fetched, and known again by its bytes wherever they are from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder.upstream.hashes import known_sha256


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

    def content(self, folder: Path, *, remember: bool = True) -> str:
        """Return the SHA-256, remembered until the file's size or time of change is another."""
        return f"sha256:{known_sha256(self.path, folder, remember=remember)}"


def local_file(path: Path) -> LocalFile:
    """Describe a file of the user's own, which is there."""
    path = path.absolute()
    status = path.stat()
    return LocalFile(str(path), status.st_size, f"modified:{status.st_mtime_ns};{status.st_size}", path)
