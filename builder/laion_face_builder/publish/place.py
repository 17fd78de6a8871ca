"""Read a published place, a folder or a Hub dataset: small files whole, Parquet files by address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from laion_face_builder.errors import SourceNotFound
from laion_face_builder.publish.destination import is_folder
from laion_face_builder.publish.manifest import MANIFEST, Manifest
from laion_face_builder.shown import harmless, in_one_line
from laion_face_builder.upstream.retrying import TransientError, retried
from laion_face_builder.upstream.source_fsspec import filesystem_of
from laion_face_builder.upstream.source_hub import HubRepo
from laion_face_builder.upstream.tokens import Token
from laion_face_builder.values import absolute


@dataclass(frozen=True)
class Place:
    """Where published files are read from.

    Args:
        folder: the folder, if it is one.
        repo: the Hub dataset at a revision, if it is that.
    """

    folder: Path | None
    repo: HubRepo | None

    @classmethod
    def at(cls, target: str, revision: str | None = None, token: Token = None) -> Place:
        """Give the place that `target` means, as `destinations.destination_at` understands it."""
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

    def parquet(self, name: str) -> pq.ParquetFile:
        """Open the file for reading; pages are checked against their checksums. The caller has to close it."""
        if self.folder is not None:
            return pq.ParquetFile(self.folder / name, page_checksum_verification=True)
        return _asked(
            lambda system, path: pq.ParquetFile(
                system.open(path, "rb", cache_type="none"), pre_buffer=True, page_checksum_verification=True
            ),
            self.address(name),
            self._hub.token,
        )

    @property
    def _hub(self) -> HubRepo:
        if self.repo is None:
            raise TypeError("a folder is no Hub dataset")
        return self.repo


def _asked(ask: Any, address: str, token: Token) -> Any:
    def attempt() -> Any:
        system, path = filesystem_of(address, token)
        try:
            return ask(system, path)
        except Exception as error:  # Every filesystem raises errors of its own libraries.
            raise TransientError(in_one_line(f"{type(error).__name__}: {error}", 200)) from harmless(error)

    return retried(attempt, address)
