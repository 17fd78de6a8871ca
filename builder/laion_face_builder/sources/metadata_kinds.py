"""Tell the two kinds of metadata apart: files whose numbers are parts, and any other set of Parquet files.

*By part*: the 32 files of 2021, or those that the original converter made of them, known by their exact names. Part i
of the id list belongs to file i. *Whole*: everything else. A number in a name means nothing there, since later releases
were cut and ordered anew: the rows of a part can be in any file, and all files have to be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from laion_face_builder.errors import SourceError, SourceNotFound
from laion_face_builder.layout import ALL_PARTS
from laion_face_builder.sources.copied_file import RemoteFile

#: The names of LAION's release of 2021 and of the files that the original converter made of it.
CANONICAL = "part-{part:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"
CONVERTED = "laion_face_part_{part:05d}.parquet"

_PART_OF = {form.format(part=part): part for form in (CANONICAL, CONVERTED) for part in ALL_PARTS}
_ONE_KIND = "Name the folder of one kind with metadata=, or move the others away."
WAYS_OUT = (
    'Name a place that has it with metadata=: a Hub dataset "owner/name", an hf:// or http(s):// folder, a local '
    "folder, or give a published index with index=."
)


class Place(ABC):
    """A place with files that can be listed; paths are relative to it, with slashes."""

    @property
    @abstractmethod
    def where(self) -> str:
        """What people call the place, without password or token."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """List the paths of all files.

        Raises:
            SourceError: the paths cannot be had.
        """

    @abstractmethod
    def file(self, name: str) -> RemoteFile:
        """Look up one file.

        Raises:
            SourceError: the file cannot be had; BadFile: a local file that is not Parquet.
        """

    def files(self, names: Sequence[str]) -> tuple[RemoteFile, ...]:
        """Look up several files."""
        return tuple(self.file(name) for name in names)


@dataclass(frozen=True)
class ByPart:
    """Metadata with one file a part; only a few of the files may be there.

    Args:
        where: what people call the place.
        place: looks the files up.
        names: the paths of the files that are there.
    """

    where: str
    place: Place
    names: tuple[str, ...]

    def part(self, part: int) -> RemoteFile:
        """Look up the part's file.

        Raises:
            SourceNotFound: none there; SourceError: two there, or not to be had; BadFile: a local file is not Parquet.
        """
        return self.place.file(only_one(part, self.names, self.where))


@dataclass(frozen=True)
class Whole:
    """Metadata whose files say nothing about parts.

    Args:
        where: what people call the place.
        files: all of them, by path; rows are numbered in this order.
    """

    where: str
    files: tuple[RemoteFile, ...]


def metadata_at(place: Place) -> ByPart | Whole:
    """Find out what kind of metadata a place has.

    Raises:
        SourceNotFound: no Parquet file there; SourceError: files of both kinds, or not to be had.
    """
    names = place.names()
    parquet = sorted(name for name in names if name.endswith(".parquet") and not _is_hidden(name))
    of_parts = [name for name in parquet if part_of(name) is not None]
    others = [name for name in parquet if part_of(name) is None]
    if not parquet:
        raise SourceNotFound(f"{place.where}: no Parquet files; found {listed(names) or 'no files'}. {WAYS_OUT}")
    if of_parts and others:
        raise both_kinds(place.where, of_parts, others)
    if of_parts:
        return ByPart(place.where, place, tuple(of_parts))
    return Whole(place.where, place.files(others))


def both_kinds(where: str, of_parts: Sequence[str], others: Sequence[str]) -> SourceError:
    """Return the error for a place that has metadata by part and other Parquet files."""
    return SourceError(
        f"{where}: found files of single parts ({listed(of_parts, 3)}) and others, whose rows are of any part "
        f"({listed(others, 3)}); expected only one kind. {_ONE_KIND}"
    )


def part_of(name: str) -> int | None:
    """Return the part whose metadata a file of this name holds; None if the name is none of the two known ones."""
    return _PART_OF.get(PurePosixPath(name).name)


def names_of(part: int) -> list[str]:
    """Return the names that a part's metadata can have."""
    return [CANONICAL.format(part=part), CONVERTED.format(part=part)]


def only_one(part: int, names: Sequence[str], where: str) -> str:
    """Return the one name that is the part's.

    Raises:
        SourceNotFound, SourceError: none, or several.
    """
    matching = [name for name in names if part_of(name) == part]
    if not matching:
        raise SourceNotFound(
            f"{where}: no metadata of part {part}; found {listed(names)}; expected "
            f"{' or '.join(names_of(part))}. {WAYS_OUT}"
        )
    if len(matching) > 1:
        raise SourceError(
            f"{where}: {len(matching)} files for part {part}: {listed(matching)}; expected one. "
            "Name the folder that holds only one of them with metadata=, or move the others away."
        )
    return matching[0]


def listed(names: Iterable[str], most: int = 8) -> str:
    """Join the first few names, and the count of the others."""
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def _is_hidden(name: str) -> bool:
    # Half-written files, and what other systems put beside files ("._x.parquet").
    return any(piece.startswith(".") for piece in PurePosixPath(name).parts)
