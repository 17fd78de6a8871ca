"""Where each upstream file comes from: ids and detections from a Hub repo, the metadata from wherever it is.

The metadata release moved often, so its place is an option: a Hub dataset ("owner/name", with "@revision" if wanted),
an hf://, http(s):// or other fsspec folder, or a local folder. A local folder that exists wins over a Hub dataset of
the same look.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from laion_face_builder.errors import GatedSource, OptionError, SourceError, SourceNotFound
from laion_face_builder.upstream.footers import local_footer_version
from laion_face_builder.upstream.source_files import LocalFile, RemoteFile
from laion_face_builder.upstream.source_fsspec import list_fsspec, look_up_fsspec
from laion_face_builder.upstream.source_hub import HubRepo
from laion_face_builder.upstream.source_url import UrlFile, joined_url, look_up_url, redacted

DEFAULT_REPO = "FacePerceiver/laion-face"
DEFAULT_METADATA = "laion/laion400m"

ID_LIST = "laion_face_ids.pth"
#: The names of LAION's release and of the files that the original converter made of it.
CANONICAL = "part-{part:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"
CONVERTED = "laion_face_part_{part:05d}.parquet"

_NAMES = re.compile(r"(?:part-(\d{5})-.+\.snappy|laion_face_part_(\d{5}))\.parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WAYS_OUT = (
    'Name a place that has it with metadata=: a Hub dataset "owner/name", an hf:// or http(s):// folder, a local '
    "folder, or give a published index with index=."
)


@dataclass(frozen=True)
class Upstream:
    """Where the three kinds of source files are; asks nobody before a file is asked for, and each listing once.

    Args:
        source_repo: the Hub dataset with the id list and the detections.
        source_revision: its branch, tag or commit; None means "main".
        metadata: the place of LAION-400M's metadata, see the module.
        token: for the Hub; None means the one that `hf auth login` or HF_TOKEN gave.
    """

    source_repo: str = DEFAULT_REPO
    source_revision: str | None = None
    metadata_place: str | os.PathLike[str] = DEFAULT_METADATA
    token: str | None = field(default=None, repr=False)

    def id_list(self) -> RemoteFile:
        """The sample ids of all parts.

        Raises:
            SourceError: not to be had; GatedSource and SourceNotFound say more.
        """
        return self._repo.file(ID_LIST)

    def detections(self, part: int) -> RemoteFile:
        """The faces of a part.

        Raises:
            SourceError: not to be had; GatedSource and SourceNotFound say more.
        """
        return self._repo.file(f"sample2detect_{part}.pth")

    def metadata(self, part: int) -> RemoteFile:
        """LAION-400M's rows of a part.

        Raises:
            SourceError: none there, two there, or not to be had; OptionError: the place is not to be understood;
            BadFile: a local file that is not Parquet.
        """
        return self._folder.part(part)

    @cached_property
    def _repo(self) -> HubRepo:
        return HubRepo(hub_id(self.source_repo, "source_repo"), self.source_revision, self.token)

    @cached_property
    def _folder(self) -> _Folder:
        return _folder(os.fspath(self.metadata_place), self.token)


class _Folder:
    """A place with one metadata file a part."""

    where: str

    def part(self, part: int) -> RemoteFile:
        """The part's file."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Local(_Folder):
    path: Path

    def part(self, part: int) -> RemoteFile:
        found = {str(file.relative_to(self.path)): file for file in sorted(self.path.rglob("*.parquet"))}
        return _local_file(found[_only(part, list(found), f"folder {self.path}")])


@dataclass(frozen=True)
class _Hub(_Folder):
    repo: HubRepo
    below: str = ""

    def part(self, part: int) -> RemoteFile:
        names = [name for name in self.repo.files if name.startswith(self.below)]
        return self.repo.file(_only(part, names, f"Hub dataset {self.repo.repo}" + (self.below and f", {self.below}")))


@dataclass(frozen=True)
class _Http(_Folder):
    """http has no listing: the known names are tried."""

    address: str

    def part(self, part: int) -> RemoteFile:
        names = [CANONICAL.format(part=part), CONVERTED.format(part=part)]
        answers = {name: look_up_url(joined_url(self.address, name)) for name in names}
        found = {name: answer for name, answer in answers.items() if isinstance(answer, UrlFile)}
        if not found:
            statuses = "; ".join(f"{name}: HTTP {status}" for name, status in answers.items())
            refused = any(status in (401, 403) for status in answers.values())
            raise (GatedSource if refused else SourceNotFound)(
                f"{redacted(self.address)}: no metadata of part {part} ({statuses}). {_WAYS_OUT}"
            )
        return found[_only(part, list(found), redacted(self.address))]


@dataclass(frozen=True)
class _Fsspec(_Folder):
    address: str

    def part(self, part: int) -> RemoteFile:
        return look_up_fsspec(_only(part, list_fsspec(self.address), redacted(self.address)))


def _local_file(path: Path) -> LocalFile:
    """A Parquet file of the user's own."""
    return LocalFile(str(path), path.stat().st_size, local_footer_version(path), path)


def _folder(place: str, token: str | None) -> _Folder:
    """The folder meant by `place`.

    Raises:
        OptionError: none of the forms.
    """
    path = Path(place.removeprefix("file://")).expanduser()
    if place and "://" not in place.removeprefix("file://") and path.is_dir():
        return _Local(path)
    if place.startswith("hf://datasets/"):
        return _hub_folder(place.removeprefix("hf://datasets/"), token)
    if place.startswith(("http://", "https://")):
        return _Http(place)
    if "://" in place.removeprefix("file://"):
        return _Fsspec(place)
    if place.startswith((".", "~", "/", "\\", "file://")) or path.is_absolute() or (place and path.exists()):
        found = "a file" if path.exists() else "nothing"
        raise SourceNotFound(f"metadata={place!r}: found {found} there, expected a folder of Parquet files")
    name, _, revision = place.partition("@")
    return _Hub(HubRepo(hub_id(name, "metadata"), revision or None, token))


def _hub_folder(rest: str, token: str | None) -> _Folder:
    """hf://datasets/OWNER/NAME[@REVISION][/FOLDER]."""
    owner, _, tail = rest.partition("/")
    name, _, below = tail.partition("/")
    name, _, revision = name.partition("@")
    below = below.strip("/")
    repo = HubRepo(hub_id(f"{owner}/{name}", "metadata"), revision.replace("%2F", "/") or None, token)
    return _Hub(repo, f"{below}/" if below else "")


def hub_id(name: str, option: str) -> str:
    """`name` if it looks like "owner/name".

    Raises:
        OptionError: it does not; the message names `option` and what it takes.
    """
    if not _HUB_ID.fullmatch(name) or name.startswith((".", "-")):
        forms = (
            "" if option != "metadata" else ', an hf://, http(s):// or other fsspec folder, or a local folder ("./x")'
        )
        raise OptionError(f'{option}={name!r}: expected a Hub dataset "owner/name"{forms}')
    return name


def _only(part: int, names: Sequence[str], where: str) -> str:
    """The one name that is the part's.

    Raises:
        SourceNotFound, SourceError: none, or several.
    """
    matching = [name for name in names if part_of(name) == part]
    if not matching:
        found = _listed(name for name in names if name.endswith(".parquet")) or _listed(names) or "no files"
        raise SourceNotFound(
            f"{where}: no metadata of part {part}; found {found}; expected part-{part:05d}-….snappy.parquet or "
            f"{CONVERTED.format(part=part)}. {_WAYS_OUT}"
        )
    if len(matching) > 1:
        raise SourceError(
            f"{where}: {len(matching)} files for part {part}: {_listed(matching)}; expected one. "
            "Name the folder that holds only one of them with metadata=, or move the others away."
        )
    return matching[0]


def part_of(name: str) -> int | None:
    """The part whose metadata a file of this name holds, None if the name is none of the known ones."""
    match = _NAMES.fullmatch(PurePosixPath(name.replace("\\", "/")).name)
    return int(match[1] or match[2]) if match else None


def _listed(names: Iterable[str], most: int = 8) -> str:
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
