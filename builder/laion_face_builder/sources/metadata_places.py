"""Find metadata in places as people write them: folders, Hub datasets, http(s) and fsspec addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from laion_face_builder.errors import OptionError, SourceNotFound
from laion_face_builder.shown import HIDDEN, bare
from laion_face_builder.sources.copied_file import LocalFile, RemoteFile, check_footer, local_file
from laion_face_builder.sources.fsspec_folder import FsspecFile, fsspec_files
from laion_face_builder.sources.http_folder import http_metadata
from laion_face_builder.sources.hub import HubRepo, Token, hub_repo
from laion_face_builder.sources.hub_cache import CachedRepo
from laion_face_builder.sources.metadata_kinds import ByPart, Place, Whole, metadata_at
from laion_face_builder.sources.url import check_address
from laion_face_builder.values import absolute

_HUB_ID = re.compile(r"(?![.-])[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class _Local(Place):
    path: Path

    @property
    def where(self) -> str:
        return f"folder {self.path}"

    def names(self) -> Sequence[str]:
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]

    def file(self, name: str) -> LocalFile:
        check_footer(self.path / name)
        return local_file(self.path / name)


@dataclass(frozen=True)
class _Hub(Place):
    repo: HubRepo | CachedRepo
    below: str = ""

    @property
    def where(self) -> str:
        return f"Hub dataset {self.repo.repo}" + (self.below and f", {self.below}")

    def names(self) -> Sequence[str]:
        return [name for name in self.repo.files if name.startswith(self.below)]

    def file(self, name: str) -> RemoteFile:
        return self.repo.file(name)

    def files(self, names: Sequence[str]) -> tuple[RemoteFile, ...]:
        return self.repo.look_up(names)


@dataclass(frozen=True)
class _Fsspec(Place):
    address: str = field(repr=False)
    token: Token = field(default=None, repr=False)

    @property
    def where(self) -> str:
        return bare(self.address)

    @cached_property
    def _files(self) -> dict[str, FsspecFile]:
        return fsspec_files(self.address, self.token)

    def names(self) -> Sequence[str]:
        return list(self._files)

    def file(self, name: str) -> FsspecFile:
        return self._files[name]


def find_metadata(place: str, token: Token = None) -> ByPart | Whole:
    """Find the metadata at `place`: a folder, "owner/name[@revision]", hf://, http(s):// or another fsspec address.

    Raises:
        OptionError: none of these forms; SourceError: see `metadata_kinds.metadata_at`.
    """
    folder = local_folder(place, "metadata", "Parquet files")
    if folder is not None:
        return metadata_at(_Local(folder))
    if "://" in place:
        check_address(place, "metadata")
    if place.startswith(("http://", "https://")):
        return http_metadata(place)
    if place.startswith("hf://datasets/"):
        return metadata_at(_hub_folder(place.removeprefix("hf://datasets/"), token))
    if place.startswith("hf://"):
        raise OptionError(f"metadata={place!r}: expected hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
    if "://" in place:
        return metadata_at(_Fsspec(place, token))
    name, _, revision = place.partition("@")
    return metadata_at(_Hub(hub_repo(hub_id(name, "metadata"), revision or None, token)))


def local_folder(place: str, option: str, what: str) -> Path | None:
    """Return the folder that `place` means, None for an address or a Hub id; an existing folder wins over a Hub id.

    Raises:
        SourceNotFound: it can only be a folder, but there is none.
    """
    if not place or "://" in place.removeprefix("file://"):
        return None
    path = absolute(place.removeprefix("file://"))
    if path.is_dir():
        return path
    if place.startswith((".", "~", "/", "\\", "file://")) or Path(place).is_absolute() or path.exists():
        found = "a file" if path.exists() else "nothing"
        raise SourceNotFound(f"{option}={place!r}: found {found} there, expected a folder of {what}")
    return None


def _hub_folder(rest: str, token: Token) -> _Hub:
    """Take apart hf://datasets/OWNER/NAME[@REVISION][/FOLDER]."""
    owner, _, tail = rest.partition("/")
    if not owner or not tail:
        raise OptionError(f"metadata='hf://datasets/{rest}': expected hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
    name, _, below = tail.partition("/")
    name, _, revision = name.partition("@")
    below = below.strip("/")
    repo = hub_repo(hub_id(f"{owner}/{name}", "metadata"), revision.replace("%2F", "/") or None, token)
    return _Hub(repo, f"{below}/" if below else "")


def is_hub_id(text: str) -> bool:
    """Say whether this looks like the name of a dataset on the Hub, "owner/name"."""
    return _HUB_ID.fullmatch(text) is not None


def hub_id(name: str, option: str) -> str:
    """Return `name` if it looks like "owner/name".

    Raises:
        OptionError: it does not; the message names `option` and what it takes.
    """
    if not is_hub_id(name):
        addresses = ", an hf://, http(s):// or other fsspec folder" if option == "metadata" else ""
        # With a colon it is the first half of some other address, up to the @.
        given = name if ":" not in name else f"{name.partition(':')[0]}:{HIDDEN}"
        raise OptionError(
            f'{option}={given!r}: expected a Hub dataset "owner/name"{addresses}, or a local folder ("./x")'
        )
    return name
