"""Remember what was taken down from a DATA_DIR, so that nothing that is made later has it again.

DATA_DIR/removed.json               {"format": 1, "removals": [{"date", "reason", "entries", "found", "is_done"}, …]}

A removal is noted before the first file is touched, and noted as done after the last: whoever finds one that is not
done must not use what is there, since a part may have its rows and not yet its pictures taken out.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from laion_face_builder.errors import BadFile, StateConflict
from laion_face_builder.files import digest, locked, written_whole
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.shown import short
from laion_face_builder.sources import data_store

#: Raised when the file's own form changes.
REMOVALS_FORMAT = 1
#: The key in an index part's fingerprint that says which of its rows are gone.
STAMP = "removed"
#: The same in a copy's: what was gone at the place that it was copied from.
REMOVED_THERE = "removed_there"


@dataclass(frozen=True)
class Removal:
    """One call of `laion-face remove`.

    Attributes:
        date: when it was asked for, "2026-11-26".
        reason: as its author wrote it; may be empty.
        entries: what was listed.
        found: by part, the hashes of the sample ids of all rows that were named, whatever named them.
        is_done: whether no file of DATA_DIR has any of it any more.
        pictures: by part, the digests of its sidecar's fingerprint before and after: what was made from the first is
            what would be made from the last, but for the rows that are gone.
    """

    date: str
    reason: str
    entries: Removed
    found: Mapping[int, frozenset[str]] = field(default_factory=dict)
    is_done: bool = False
    pictures: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what is written of it."""
        written = asdict(replace(self, entries=Removed(), pictures={}))
        written["entries"] = self.entries.as_dict()
        written["found"] = {str(part): sorted(hashes) for part, hashes in sorted(self.found.items())}
        written["pictures"] = {str(part): list(digests) for part, digests in sorted(self.pictures.items())}
        return {name: value for name, value in written.items() if name != "pictures" or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Removal:
        """Make one from what `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        found = {int(part): Removed.from_dict({"sample_ids": ids}).sample_ids for part, ids in values["found"].items()}
        entries = Removed.from_dict(values["entries"])
        pictures = {int(part): tuple(map(str, digests)) for part, digests in values.get("pictures", {}).items()}
        return cls(str(values["date"]), str(values["reason"]), entries, found, bool(values["is_done"]), pictures)

    def is_of(self, other: Removal) -> bool:
        """Say whether both are of the same call, whatever was found in which place."""
        return (self.date, self.reason, self.entries) == (other.date, other.reason, other.entries)

    def with_found_of(self, other: Removal) -> Removal:
        """Return this one with what the other found too."""
        parts = sorted({*self.found, *other.found})
        found = {part: frozenset(self.found.get(part, ())).union(other.found.get(part, ())) for part in parts}
        return replace(self, found=found)


@dataclass(frozen=True)
class Removals:
    """All removals from one DATA_DIR, the oldest first."""

    done: tuple[Removal, ...] = ()

    @classmethod
    def of(cls, data: DataDir) -> Removals:
        """Read those of `data`; none if none was ever asked for.

        Raises:
            BadFile: the file there is not ours, or of a later version.
        """
        if not data_store.brought(data, data.removed):
            return cls()
        version = _version(data.removed)
        known = _KNOWN.get(data.removed)
        return (
            known[1] if known is not None and known[0] == version else _kept(data.removed, version, _read(data.removed))
        )

    @cached_property
    def removed(self) -> Removed:
        """All that was ever taken down: what was listed, and the ids of the rows that were found by it."""
        found = (hashes for removal in self.done for hashes in removal.found.values())
        ids = Removed(frozenset[str]().union(*found))
        return functools.reduce(operator.or_, (removal.entries for removal in self.done), ids)

    @property
    def pending(self) -> Removal | None:
        """The removal that was begun and not finished, if there is one."""
        return next((removal for removal in self.done if not removal.is_done), None)

    def found_in(self, part: int) -> frozenset[str]:
        """Return the hashes of the ids of all rows that were taken out of a part."""
        return frozenset[str]().union(*(removal.found.get(part, ()) for removal in self.done))

    def stamp(self, part: int) -> dict[str, str]:
        """Return what an index part's fingerprint says of removals: a digest of what is gone; {} if nothing is."""
        found = self.found_in(part)
        return {STAMP: digest(sorted(found))} if found else {}

    def begun(self, removal: Removal) -> Removals:
        """Return these with one more."""
        return Removals((*self.done, removal))

    def with_found(self, part: int, hashes: Iterable[str]) -> Removals:
        """Return these with rows of a part that the latest removal names."""
        *before, last = self.done
        merged = {**last.found, part: frozenset(last.found.get(part, ())).union(hashes)}
        return Removals((*before, replace(last, found=merged)))

    def merged_with(self, other: Removals) -> Removals:
        """Return these and those of another place; what both know is one, and what was found in either is found."""
        merged = list(self.done)
        for removal in other.done:
            same = next((place for place, known in enumerate(merged) if known.is_of(removal)), None)
            if same is None:
                merged.append(removal)
            else:
                merged[same] = merged[same].with_found_of(removal)
        return Removals(tuple(merged))

    def published(self) -> Removals:
        """Return what others are told of these: not what DATA_DIR alone needs to know."""
        return Removals(tuple(replace(removal, is_done=True, pictures={}) for removal in self.done))

    def with_pictures(self, part: int, sidecar: str) -> Removals:
        """Return these, the latest knowing the digest of a part's sidecar as it is now; to be told before and after."""
        *before, last = self.done
        known = last.pictures.get(part, ())
        if sidecar not in known[-1:]:
            last = replace(last, pictures={**last.pictures, part: (*known, sidecar)})
        return Removals((*before, last))

    def pictures_before(self, part: int, sidecar: str) -> frozenset[str]:
        """Return the digests that the part's sidecar had when nothing but rows has left it since; its own too.

        A round of downloads between two removals ends the chain: there are other pictures since.
        """
        chain = {sidecar}
        for removal in reversed(self.done):
            if (known := removal.pictures.get(part)) and known[-1] in chain:
                chain |= {*known}
        return frozenset(chain)

    def finished(self) -> Removals:
        """Return these, all of them done."""
        return Removals(tuple(replace(removal, is_done=True) for removal in self.done))

    def write(self, data: DataDir) -> None:
        """Write them to DATA_DIR."""
        with written_whole(data.removed) as partial:
            text = f'{{"format": {REMOVALS_FORMAT}, "removals": {self.as_text()}}}\n'
            partial.write_text(text, encoding="utf-8")
        _kept(data.removed, _version(data.removed), self)
        data_store.send(data, data.removed)

    def as_text(self) -> str:
        """Return them as JSON, a removal a line: with more lines a million hashes would take ten times as long."""
        return "[\n" + ",\n".join(json.dumps(removal.as_dict()) for removal in self.done) + "\n]"


_Version = tuple[int, ...]
#: What was read or written last, by file: every part asks, and a million hashes take seconds to read.
_KNOWN: dict[Path, tuple[_Version, Removals]] = {}
_MOST_KNOWN = 2


def _version(path: Path) -> _Version:
    now = path.stat()
    return now.st_mtime_ns, now.st_size, now.st_ino


def _kept(path: Path, version: _Version, removals: Removals) -> Removals:
    _KNOWN.pop(path, None)
    for oldest in [*_KNOWN][: 1 - _MOST_KNOWN]:
        _KNOWN.pop(oldest, None)
    _KNOWN[path] = version, removals
    return removals


def _read(path: Path) -> Removals:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != REMOVALS_FORMAT:
            raise ValueError(f"format {values['format']}")
        return Removals(tuple(map(Removal.from_dict, values["removals"])))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFile(
            path,
            found=short(f"{type(error).__name__}: {error}", 200),
            expected="what `laion-face remove` wrote",
            way_out="Restore it from a copy: without it, what was taken down would come back.",
        ) from error


def noted(data: DataDir, rows: Mapping[int, Iterable[str]]) -> None:
    """Note the rows of parts that are named, by the hashes of their ids, before they are left out of anything."""
    with locked(data.removed):
        removals = before = Removals.of(data)
        for part, hashes in rows.items():
            if new := frozenset(hashes) - removals.found_in(part):
                removals = removals.with_found(part, new)
        if removals is not before:
            removals.write(data)


def settled(data: DataDir) -> Removals:
    """Read the removals of `data`, all of which are done.

    Raises:
        StateConflict: one was begun and not finished; BadFile: as `Removals.of`.
    """
    removals = Removals.of(data)
    if removals.pending is not None:
        raise StateConflict(
            f"{data.removed}: a removal of {removals.pending.date} was begun and is not finished. Run `laion-face "
            f"remove --data-dir {data.where}` first: it goes on with it."
        )
    return removals


def without_stamp(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return an index part's fingerprint as it was before anything was taken down from it."""
    return {name: value for name, value in fingerprint.items() if name != STAMP}


def as_made(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return an index part's fingerprint as it was before anything was taken down from it, here or anywhere."""
    return {name: value for name, value in fingerprint.items() if name not in (STAMP, REMOVED_THERE)}


def lost_by(fingerprint: Mapping[str, Any]) -> str | None:
    """Return a digest of what an index part's fingerprint says of rows that have left it; None if none have."""
    stamps = [fingerprint[name] for name in (STAMP, REMOVED_THERE) if name in fingerprint]
    return digest(sorted(stamps)) if stamps else None
