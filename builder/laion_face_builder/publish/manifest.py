"""What a published place holds: the names of its files, and a manifest that states what each of them has to be.

TARGET/
  data/part-000NN.parquet         the index, one file a part; or, with pictures,
  data/part-000NN-000KK.parquet   rows of the part in order, as many files as the pictures need
  more/part-000NN….parquet        the same, of the parts that 20M does not have
  preview/preview-00000.parquet   a few rows with pictures, if asked for
  laion_face_manifest.json        rows, bytes, SHA-256, fingerprint, counts of each of those; proofs, history; hashes of
                                  what was taken down
  croissant.json                  the same for machines that read Croissant
  LICENSE.md                      which licence is for what, which the card's YAML links to
  README.md                       the card; last of all, so that it never names what is not there

The manifest says nothing about place, and of time the days on which files came or changed, or rows were taken down: two
publishes of the same parts on the same day, or with the same SOURCE_DATE_EPOCH, are the same bytes, and one that
changes nothing writes none. What was taken down is remembered here too: it stays away whoever publishes here next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal

from laion_face_builder.errors import BadFile
from laion_face_builder.files import Fingerprint
from laion_face_builder.index.removals import Removal, Removals
from laion_face_builder.layout import CONFIG_PARTS
from laion_face_builder.shown import short

MANIFEST = "laion_face_manifest.json"
CROISSANT = "croissant.json"
CARD = "README.md"
LICENCE = "LICENSE.md"
PREVIEW = "preview"
PREVIEW_FILE = "preview/preview-00000.parquet"
#: Raised when the manifest's own form changes so that those of earlier versions cannot be read.
MANIFEST_FORMAT = 1
#: Of one that remembers what was taken down: versions that do not know of it would forget it, and publish it again.
REMEMBERING_FORMAT = 2

#: The files of each config by one pattern: what the Hub's page tells people to type for pandas and Polars reads the
#: first of several names, and no more.
GLOBS = {"20M": "data/part-*.parquet", "50M": "*/part-*.parquet"}
_DATA_NAME = re.compile(r"(data|more)/part-\d{5}(-\d{5})?\.parquet")

Kind = Literal["index", "examples"]
#: The Hub lets people in as they ask, or as the publisher decides, or all without asking them.
GATES = ("auto", "manual", "off")


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
        counts: what is in its rows, as `published_counts` has it; {} if an earlier version published it.
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
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Publisher:
    """What a publisher says of a place; it holds for later publishes too, until something else is said.

    Attributes:
        contact: an e-mail address or URL for people who want to be left out; "" if none is given.
        gated: how the Hub lets people in: "auto", "manual", or "" if anybody may read.
        public_pictures: the publisher has the right to show every picture to everybody.
    """

    contact: str = ""
    gated: str = ""
    public_pictures: bool = False


@dataclass(frozen=True)
class Manifest:
    """What a published place holds, and where it comes from.

    Attributes:
        kind: which columns the files in data/ and more/ have.
        entries: all Parquet files, by name.
        joins: the proof of each part's join, by the part's number, as far as there is one.
        publisher: what the publisher says.
        history: what came and changed, by day, the oldest first; see `history`.
        removals: what was taken down from it.
        text: as it was read; None of one that was not.
    """

    kind: Kind
    entries: Mapping[str, Entry] = field(default_factory=dict)
    joins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    publisher: Publisher = Publisher()
    history: tuple[Mapping[str, Any], ...] = ()
    removals: Removals = Removals()
    text: bytes | None = field(default=None, repr=False, compare=False)

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
        entries = self.of_config(config) or list(self.entries.values())
        found = [entry.fingerprint.get("columns", []) for entry in entries]
        return list(found[0]) if found else []

    @property
    def single(self) -> tuple[str, Entry] | None:
        """The config of one file beside 20M and 50M, and that file; None if the default config is one file itself.

        It is the preview, else the default config's first file under that file's own name. The Hub's viewer looks in
        the first config whether pages are small ("optimized Parquet"), and finds out only where that is one file.
        """
        if self.preview:
            return PREVIEW, self.preview
        files: list[Entry] = next(filter(None, map(self.of_config, CONFIG_PARTS)), [])
        return (PurePosixPath(files[0].name).stem, files[0]) if len(files) > 1 else None

    def of_config(self, config: str) -> list[Entry]:
        """List the files of a config in the order of their names; none if none of its parts are there."""
        if config not in CONFIG_PARTS:
            return [self.single[1]] if self.single and self.single[0] == config else []
        return sorted((e for e in self.entries.values() if e.part in CONFIG_PARTS[config]), key=lambda e: e.name)

    def configs(self) -> list[str]:
        """List the configs that have files; the first is the default."""
        return [config for config in CONFIG_PARTS if self.of_config(config)] + ([self.single[0]] if self.single else [])

    def as_text(self) -> str:
        """Write the manifest as JSON: equal manifests are equal bytes."""
        about = {"publisher": asdict(self.publisher), "history": self.history, "joins": self.joins}
        entries = {name: _without_name(self.entries[name]) for name in sorted(self.entries)}
        values: dict[str, Any] = {"format": MANIFEST_FORMAT, "kind": self.kind, **about, "files": entries}
        if not self.removals.done:
            return json.dumps(values, indent=1) + "\n"
        text = json.dumps({**values, "format": REMEMBERING_FORMAT}, indent=1)
        return text.removesuffix("\n}") + f',\n "removed": {self.removals.published().as_text()}\n}}\n'

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
            removals = Removals(tuple(map(Removal.from_dict, found.get("removed", []))))
            read = text.encode() if isinstance(text, str) else text
            return cls(found["kind"], entries, **_about(found), removals=removals, text=read)
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


def _about(found: Mapping[str, Any]) -> dict[str, Any]:
    """Read what is said beside the files; manifests of earlier versions have none of it."""
    joins, history = found.get("joins", {}), found.get("history", [])
    if not all(isinstance(one, dict) for one in (joins, *joins.values(), *history)):
        raise TypeError("joins or history are of another form")
    if not all({"date", "version", "rows"} <= one.keys() for one in history):
        raise KeyError("date, version or rows in history")
    return {"joins": joins, "history": tuple(history), "publisher": Publisher(**found.get("publisher", {}))}


def _without_name(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    del values["name"]
    return values if values["counts"] else {name: value for name, value in values.items() if name != "counts"}


def _entry(name: str, values: Mapping[str, Any]) -> Entry:
    entry = Entry(name=name, **values)
    for spec in fields(Entry):
        wanted = {"int": int, "str": str}.get(str(spec.type), dict)
        if not isinstance(getattr(entry, spec.name), wanted):
            raise TypeError(f"{name}: {spec.name} is {getattr(entry, spec.name)!r}")
    return entry
