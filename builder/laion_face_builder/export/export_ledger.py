"""Keep what has been exported: what was asked, which shards are whole, and the sum of it, the manifest.

OUT/__export__/                     the name keeps `datasets` from taking this for data
  request.json                      what was asked; another request for the same folder is refused
  part-00000-00012.json             this shard is whole: its counts; written after the shard itself
  part-00000-00012.list             "files": what the lists in OUT say of its pieces
  manifest.json                     what was asked, versions, counts, failures by reason; written at the end of each run

Nothing of it says when, where or by whom.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import laion_face_builder
from laion_face_builder.errors import BadFile, StateConflict
from laion_face_builder.examples.walk import Shard
from laion_face_builder.files import locked, written_whole
from laion_face_builder.index.removals import STAMP
from laion_face_builder.shown import short

FOLDER = "__export__"
#: Raised when what is exported changes for the same request.
EXPORT_FORMAT = 1


def shard_name(shard: Shard) -> str:
    """Return the name of a shard's file or folder; names sort as the rows do."""
    return f"part-{shard.part:05d}-{shard.number:05d}"


@dataclass
class ExportCounts:
    """What became of the rows of a shard, or of several.

    Attributes:
        rows: index rows.
        filtered, excluded: those that the filters drop, and those of them that the exclusion list names.
        pictures: those of which anything was exported.
        pieces: pictures, crops or lines that were written.
        bytes: of the pictures and crops.
        failed: pictures, and faces, that gave nothing, by reason.
    """

    rows: int = 0
    filtered: int = 0
    excluded: int = 0
    pictures: int = 0
    pieces: int = 0
    bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: ExportCounts) -> None:
        """Add the counts of `other` to these."""
        for spec in fields(self):
            setattr(self, spec.name, getattr(self, spec.name) + getattr(other, spec.name))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain numbers, the most frequent failures first, of equal ones by name."""
        failed = sorted(self.failed.items(), key=lambda item: (-item[1], item[0]))
        return {**asdict(self), "failed": dict(failed)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportCounts:
        """Make the counts from what `as_dict` gave."""
        return cls(**{**values, "failed": Counter(values["failed"])})

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.failed.most_common(5))
        line = f"{self.pieces:,} written of {self.pictures:,} pictures, {self.rows:,} rows, {self.filtered:,} filtered"
        return f"{line}, {self.failed.total():,} failed{f' ({reasons})' if reasons else ''}"


@dataclass(frozen=True)
class Ledger:
    """The ledger of an export to the folder `out`."""

    out: Path

    def path(self, name: str) -> Path:
        """Return the path of one of the ledger's files."""
        return self.out / FOLDER / name

    def begin(self, request: Mapping[str, Any]) -> None:
        """Note what is asked; parts that were not asked for before are added.

        Raises:
            StateConflict: the folder holds what another request made.
        """
        path = self.path("request.json")
        with locked(path):
            merged = self.merged(request)
            if merged != self.request():
                _write(path, merged)

    def merged(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request together with that which the folder was begun with.

        Raises:
            StateConflict: see `begin`.
        """
        request = json.loads(json.dumps(request))
        there = self.request()
        if there is None:
            return dict(request)
        if there.get(STAMP) != request.get(STAMP):
            raise StateConflict(
                f"{self.out}: rows were taken down since this export was begun. Run `laion-face remove --export "
                f"{self.out}` first, with the same --data-dir: it takes them out, and the export goes on"
            )
        for name in sorted((there.keys() | request.keys()) - {"parts"}):
            if there.get(name) != request.get(name):
                raise self._conflict(name, there.get(name), request.get(name))
        for part in there["parts"].keys() & request["parts"].keys():
            if there["parts"][part] != request["parts"][part]:
                raise self._conflict(f"what part {part} is read from", there["parts"][part], request["parts"][part])
        return {**request, "parts": dict(sorted({**there["parts"], **request["parts"]}.items()))}

    def _conflict(self, what: str, then: object, now: object) -> StateConflict:
        return StateConflict(
            f"{self.out}: holds an export with another {what}: found {short(then)}, asked for is {short(now)}. Use "
            "another folder, or remove this one"
        )

    def note(self, request: Mapping[str, Any]) -> bool:
        """Note what is asked now that rows have left what was exported; return whether that is anything else."""
        if has_changed := request != self.request():
            _write(self.path("request.json"), request)
        return has_changed

    def request(self) -> dict[str, Any] | None:
        """Return what the folder was begun with; None if it was not."""
        return self._read("request.json")

    def shards(self) -> list[Shard]:
        """List all shards that were ever asked for, in the index's order."""
        request = self.request()
        if request is None:
            return []
        of = int(request["examples"]["shards_per_part"])
        return [Shard(int(part), number, of) for part in sorted(request["parts"], key=int) for number in range(of)]

    def finish(self, shard: Shard, counts: ExportCounts, listed: Iterable[str] | None) -> None:
        """Note that a shard is whole."""
        if listed is not None:
            with written_whole(self.path(f"{shard_name(shard)}.list")) as partial:
                partial.write_text("".join(listed), encoding="utf-8", errors="replace")
        _write(self.path(f"{shard_name(shard)}.json"), counts.as_dict())

    def counts_of(self, shard: Shard) -> ExportCounts | None:
        """Return the counts of a shard that is whole; None if it is not.

        Raises:
            BadFile: the ledger's file cannot be read.
        """
        values = self._read(f"{shard_name(shard)}.json")
        return None if values is None else ExportCounts.from_dict(values)

    def write_manifest(self) -> ExportCounts:
        """Write the manifest over all shards that are whole, and return their sum."""
        total, files, shards = ExportCounts(), {}, self.shards()
        for shard in shards:
            if (counts := self.counts_of(shard)) is not None:
                total.add(counts)
                files[shard_name(shard)] = {"pieces": counts.pieces, "bytes": counts.bytes}
        asked = self.request() or {}
        known = {"whole": len(files), "of": len(shards)}
        written = {"asked": asked, "versions": versions(), "shards": known, "counts": total.as_dict(), "files": files}
        _write(self.path("manifest.json"), written)
        return total

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError("no object")
            return values
        except (ValueError, TypeError) as error:
            raise BadFile(
                path,
                found=f"no JSON ({error})",
                expected="what `laion-face export` wrote",
                way_out="Remove it: what it speaks of is exported again.",
            ) from error


def versions() -> dict[str, str]:
    """Return the versions of what an export's bytes depend on."""
    import cv2
    import numpy
    import PIL
    import pyarrow

    libraries = {"numpy": numpy, "opencv": cv2, "pillow": PIL, "pyarrow": pyarrow}
    return {
        "laion-face": laion_face_builder.__version__,
        "python": platform.python_version(),
        **{name: str(library.__version__) for name, library in libraries.items()},
    }


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
