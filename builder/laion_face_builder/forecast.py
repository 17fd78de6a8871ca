"""Forecasts: what a command would do, said before it does it (`--dry-run`).

Each package that writes has a function that gives a `Forecast`, made by the very code that decides in the real run. A
forecast touches nothing: no file, no folder, no lock; upstream is asked for listings, sizes and access only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from laion_face_builder.errors import LaionFaceError
from laion_face_builder.files import disk_free, human_size
from laion_face_builder.shown import ranges

#: What becomes of a thing. "depends": that shows only once the sources have been fetched.
Deed = Literal["made", "made anew", "used as it is", "depends", "sent", "removed", "refused"]

#: What times are reckoned with; it is named beside each of them.
BYTES_A_SECOND = 50_000_000
PICTURES_A_SECOND = 100


@dataclass(frozen=True)
class Step:
    """What would become of one part, or of one file.

    Attributes:
        what: such as "part 3", or a file's path in DATA_DIR or in the published place.
        deed: what is done with it.
        why: the reason, or what it takes; "" if there is nothing to say.
        size: bytes of the file, where a step is a file and its size is known or reckoned.
    """

    what: str
    deed: Deed
    why: str = ""
    size: Amount | None = None

    def __str__(self) -> str:
        said = ", ".join(filter(None, (self.size.of_bytes() if self.size else "", self.why)))
        return f"{self.what}: {self.deed}" + (f" ({said})" if said else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the step as plain values, for programs."""
        size = self.size.as_dict() if self.size else None
        return {"what": self.what, "deed": self.deed, "why": self.why, "bytes": size}


@dataclass(frozen=True)
class Amount:
    """How many bytes or pictures; not exact where it is reckoned from averages, or more may come."""

    count: int = 0
    is_exact: bool = True

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.count + other.count, self.is_exact and other.is_exact)

    def of_bytes(self) -> str:
        """Return the amount as a size in bytes, for people."""
        return f"{'' if self.is_exact else 'about '}{human_size(self.count)}"

    def of_things(self) -> str:
        """Return the amount as a plain number, for people."""
        return f"{'' if self.is_exact else 'about '}{self.count:,}"

    def as_dict(self) -> dict[str, Any]:
        """Return the amount as plain values, for programs."""
        return {"count": self.count, "exact": self.is_exact}


@dataclass(frozen=True)
class Disk:
    """What is written in a folder, which need not exist yet, and what its disk has free."""

    folder: Path
    write: Amount
    free: int

    @classmethod
    def of(cls, folder: Path, write: Amount) -> Disk:
        """Look up how much is free on the folder's disk."""
        return cls(folder, write, disk_free(folder))

    def as_dict(self) -> dict[str, Any]:
        """Return the disk as plain values, for programs."""
        return {"folder": str(self.folder), "write_bytes": self.write.as_dict(), "free_bytes": self.free}


@dataclass(frozen=True)
class Forecast:
    """What one command would do.

    Attributes:
        command: its name.
        steps: what would become of each part or file, in the order of the real run.
        disks: what is written where.
        fetch: bytes from upstream.
        send: bytes to the Hub.
        pictures: pictures that are asked for on the web; each is a request, redirects and further tries aside.
        notes: what else is to be known, a line each.
        refusal: what the real run would end with, at the latest after the steps before it.
    """

    command: str
    steps: tuple[Step, ...]
    disks: tuple[Disk, ...]
    fetch: Amount = Amount()
    send: Amount = Amount()
    pictures: Amount = Amount()
    notes: tuple[str, ...] = ()
    refusal: LaionFaceError | None = None

    def lines(self) -> Iterator[str]:
        """Yield the forecast as lines for people; the refusal is not among them, since it is raised."""
        yield f"dry run of {self.command}: nothing is touched"
        yield from _in_short(self.steps)
        yield f"to fetch: {self.fetch.of_bytes()}"
        for disk in self.disks:
            yield f"to write: {disk.write.of_bytes()} at {disk.folder} ({human_size(disk.free)} free)"
        if self.send.count:
            yield f"to send: {self.send.of_bytes()}"
        if self.pictures.count:
            yield f"pictures to ask for: {self.pictures.of_things()}"
        for time in self.hours:
            yield f"time to {time['to']}: {duration(time['hours'])} at {time['at']}"
        yield from self.notes

    @property
    def hours(self) -> list[dict[str, Any]]:
        """How long each use of the network takes, and the pace that is assumed for it."""
        paces = (
            ("fetch", self.fetch, BYTES_A_SECOND, f"{BYTES_A_SECOND // 1_000_000} MB/s"),
            ("send", self.send, BYTES_A_SECOND, f"{BYTES_A_SECOND // 1_000_000} MB/s"),
            ("ask for pictures", self.pictures, PICTURES_A_SECOND, f"{PICTURES_A_SECOND} pictures/s"),
        )
        return [{"to": to, "hours": n.count / pace / 3600, "at": at} for to, n, pace, at in paces if n.count]

    def as_dict(self) -> dict[str, Any]:
        """Return the whole forecast as JSON has it."""
        return {
            "command": self.command,
            "dry_run": True,
            "steps": [step.as_dict() for step in self.steps],
            "fetch_bytes": self.fetch.as_dict(),
            "send_bytes": self.send.as_dict(),
            "pictures": self.pictures.as_dict(),
            "disks": [disk.as_dict() for disk in self.disks],
            "hours": self.hours,
            "notes": list(self.notes),
            "refusal": None if self.refusal is None else str(self.refusal),
        }


def _in_short(steps: Sequence[Step]) -> Iterator[str]:
    """Yield a line for each step, but one for all of the parts in a row with which the same is done."""
    for (of_parts, *_), run in groupby(steps, lambda step: (_is_part(step), step.deed, step.why)):
        alike = list(run)
        if of_parts and len(alike) > 1:
            named = ranges((int(step.what.removeprefix("part ")) for step in alike), ", ")
            yield str(replace(alike[0], what=f"parts {named}"))
        else:
            yield from map(str, alike)


def _is_part(step: Step) -> bool:
    return step.what.removeprefix("part ").isdecimal() and step.size is None


def duration(hours: float) -> str:
    """Return so many hours as text for people."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} min" if hours > 1 / 60 else "less than a minute"
