"""What a published place holds: the names of its files, and a manifest that states what each of them has to be.

TARGET/
  data/part-000NN.parquet         the index, one file a part; or, with pictures,
  data/part-000NN-000KK.parquet   rows of the part in order, as many files as the pictures need
  more/part-000NN….parquet        the same, of the parts that 20M does not have
  preview/preview-00000.parquet   a few rows with pictures, if asked for
  laion_face_manifest.json        rows, bytes, SHA-256, fingerprint of each of those; as hashes, what was taken down
  croissant.json                  the same for machines that read Croissant
  README.md                       the card; last of all, so that it never names what is not there

The manifest says nothing about time or place, so that two publishes of the same parts are the same bytes; but for the
dates of what was taken down. That is remembered here too, so that it stays away whoever publishes here next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from laion_face_builder.errors import BadFile
from laion_face_builder.files import Fingerprint
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.shown import short

MANIFEST = "laion_face_manifest.json"
CROISSANT = "croissant.json"
CARD = "README.md"
PREVIEW = "preview"
PREVIEW_FILE = "preview/preview-00000.parquet"
#: Raised when the manifest's own form changes.
MANIFEST_FORMAT = 1
#: Of one that remembers what was taken down: versions that do not know of it would forget it, and publish it again.
REMEMBERING_FORMAT = 2

#: The files of each config by one pattern: what the Hub's page tells people to type for pandas and Polars reads the
#: first of several names, and no more.
GLOBS = {"20M": "data/part-*.parquet", "50M": "*/part-*.parquet"}
_DATA_NAME = re.compile(r"(data|more)/part-\d{5}(-\d{5})?\.parquet")

Kind = Literal["index", "examples"]


@dataclass(frozen=True)
class Entry:
    """One published Parquet file.

    Attributes:
        name: its path in the published place.
        part: of which part its rows are; -1 for the preview.
        rows: how many it has.
        first, stop: the rows of the part's index that it speaks of: first … stop. Rows that are excluded are not in it.
        row_groups: how many.
        size: bytes of the file.
        arrow_bytes: bytes of its rows as Arrow tables, which is what `datasets` states as num_bytes.
        sha256: of the file's bytes, in hex.
        sample_ids: SHA-256 of its sample ids in order, as little-endian int64, in hex.
        fingerprint: what it was made from.
    """

    name: str
    part: int
    rows: int
    first: int
    stop: int
    row_groups: int
    size: int
    arrow_bytes: int
    sha256: str
    sample_ids: str
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Manifest:
    """All Parquet files of a published place, by name, and what was taken down from it.

    `kind` says which columns those in data/ have.
    """

    kind: Kind
    entries: Mapping[str, Entry] = field(default_factory=dict)
    removals: Removals = Removals()

    @property
    def parts(self) -> tuple[int, ...]:
        """The parts that are there, ascending."""
        return tuple(sorted({entry.part for entry in self.entries.values() if entry.part >= 0}))

    @property
    def preview(self) -> Entry | None:
        """The preview's file, if there is one."""
        return self.entries.get(PREVIEW_FILE)

    def columns(self, config: str) -> list[dict[str, Any]]:
        """Describe the columns beside ours in a config's files, as dataset_info does; all files have the same."""
        entries = self.of_config(config) if config in (*CONFIG_PARTS, PREVIEW) else self.entries.values()
        found = [entry.fingerprint.get("columns", []) for entry in entries]
        return list(found[0]) if found else []

    def of_config(self, config: str) -> list[Entry]:
        """List the files of a config in the order of their names; none if none of its parts are there."""
        if config == PREVIEW:
            return [self.preview] if self.preview else []
        return sorted((e for e in self.entries.values() if e.part in CONFIG_PARTS[config]), key=lambda e: e.name)

    def configs(self) -> list[str]:
        """List the configs that have files; the first is the default."""
        return [config for config in (*CONFIG_PARTS, PREVIEW) if self.of_config(config)]

    def as_text(self) -> str:
        """Write the manifest as JSON: equal manifests are equal bytes."""
        entries = {name: _without_name(self.entries[name]) for name in sorted(self.entries)}
        values: dict[str, Any] = {"format": MANIFEST_FORMAT, "kind": self.kind, "files": entries}
        if self.removals.done:
            values["format"] = REMEMBERING_FORMAT
            values["removed"] = [removal.as_dict() for removal in self.removals.published().done]
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes, place: str) -> Manifest:
        """Read a manifest that `as_text` wrote.

        Raises:
            BadFile: the text is no manifest, or one of a later version.
        """
        try:
            found = json.loads(text)
            is_known = found["format"] in (MANIFEST_FORMAT, REMEMBERING_FORMAT)
            if not is_known or found["kind"] not in ("index", "examples"):
                raise ValueError(f"format {found['format']}, kind {found['kind']}")
            entries = {name: _entry(name, values) for name, values in found["files"].items()}
            return cls(found["kind"], entries, Removals(tuple(map(Removal.from_dict, found.get("removed", [])))))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadFile(
                f"{place}/{MANIFEST}",
                found=short(f"{type(error).__name__}: {error}", 200),
                expected=f"a manifest of format {MANIFEST_FORMAT} or {REMEMBERING_FORMAT}",
                way_out="Publish to a new place, or use the version of laion-face that published this one.",
            ) from error


def index_name(part: int) -> str:
    """Name the published file of an index part."""
    return f"{_folder_of(part)}/part-{part:05d}.parquet"


def examples_name(part: int, number: int) -> str:
    """Name the `number`-th file of a part with pictures. Names sort as the rows do."""
    return f"{_folder_of(part)}/part-{part:05d}-{number:05d}.parquet"


def _folder_of(part: int) -> str:
    return "data" if part in CONFIG_PARTS["20M"] else "more"


def is_ours(name: str) -> bool:
    """Say whether a file of this name is one that a publish writes, and may remove."""
    return name == PREVIEW_FILE or _DATA_NAME.fullmatch(name) is not None


def _without_name(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    del values["name"]
    return values


def _entry(name: str, values: Mapping[str, Any]) -> Entry:
    entry = Entry(name=name, **values)
    for spec in fields(Entry):
        wanted = {"int": int, "str": str}.get(str(spec.type), dict)
        if not isinstance(getattr(entry, spec.name), wanted):
            raise TypeError(f"{name}: {spec.name} is {getattr(entry, spec.name)!r}")
    return entry
