"""Where a publish goes: a folder or a dataset repo on the Hub, with one interface.

    place = destinations.destination_at("owner/laion-face", private=True)
    place.send([Outgoing.of("data/part-00000.parquet", path)], "Add part 0")
    assert place.check(everything) == []

An interrupted publish can simply be run again: what stands there whole, by size and SHA-256, is not sent again, and
nothing half-sent is ever seen under its name. The modules `folder` and `hub` have the two places;
`destinations` chooses one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from laion_face_builder.errors import BadFile, OptionError
from laion_face_builder.files import sha256_of


@dataclass(frozen=True)
class Outgoing:
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
    def of(cls, name: str, path: Path) -> Outgoing:
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
class Held:
    """One file that stands in the published place.

    Args:
        size: bytes.
        sha256: in hex; None where it is not known without reading the file.
        git_sha1: what git names the content by; the Hub states it for the small files that are not in LFS.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


def missing(files: Sequence[Outgoing], held: Mapping[str, Held]) -> list[Outgoing]:
    """Give those of `files` that are not among `held`, by name, size and SHA-256, in their order.

    Raises:
        OptionError: two files have one name.
    """
    if len({file.name for file in files}) < len(files):
        twice = sorted({file.name for file in files if [other.name for other in files].count(file.name) > 1})
        raise OptionError(f"two files to publish under one name: {', '.join(twice)}")
    return [file for file in files if problem(file, held.get(file.name))]


def problem(file: Outgoing, held: Held | None) -> str | None:
    """Say in one line how `held` differs from `file`; None if it does not."""
    if held is None:
        return f"{file.name}: is not there"
    if held.size != file.size:
        return f"{file.name}: found {held.size} bytes, expected {file.size}"
    if held.sha256 != file.sha256:
        found = f"SHA-256 {held.sha256}" if held.sha256 else "other content, or none that can be compared"
        return f"{file.name}: found {found}, expected SHA-256 {file.sha256}"
    return None


def problems(files: Sequence[Outgoing], held: Mapping[str, Held]) -> list[str]:
    """List every `problem` of `files`, in their order."""
    return [line for file in files if (line := problem(file, held.get(file.name)))]


class Destination(Protocol):
    """A published place. All methods raise a LaionFaceError that says what to do."""

    def listing(self) -> dict[str, Held]:
        """List what is there now, by name; {} if the place does not exist yet."""
        ...

    def send(self, files: Sequence[Outgoing], message: str) -> int:
        """Send those files that are not there yet, by size and SHA-256, in one commit; make the place if need be.

        Args:
            files: no two of one name.
            message: the commit's.

        Returns:
            How many bytes of files were sent: 0 if all stood there.
        """
        ...

    def lacks(self, files: Sequence[Outgoing]) -> list[Outgoing]:
        """Give those of `files` that `send` would send; nothing is made or changed."""
        ...

    def remove(self, names: Sequence[str], message: str) -> None:
        """Remove files of an earlier publish, in one commit; names that are not there are skipped."""
        ...

    def check(self, files: Sequence[Outgoing]) -> list[str]:
        """List problems, one line each: a file missing, of another size or of another SHA-256; [] if all is well.

        Args:
            files: what is to be there. Local Parquet files may be gone; the local small texts, which the Hub keeps
                without a SHA-256, are read.
        """
        ...


def is_folder(target: str) -> bool:
    """Say whether `target` means a folder; see `destinations`."""
    if "://" in target:  # Else a folder would be made, under a name that has the password in it.
        return False
    written_so = target.startswith((os.sep, ".", "~")) or target.endswith(("/", os.sep))
    return written_so or (target != "" and Path(target).is_dir())
