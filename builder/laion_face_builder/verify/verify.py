"""`laion-face verify`: find what is wrong with a DATA_DIR or a published place, a line each.

Every file of a published place is verified against its manifest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from laion_face_builder.errors import BadFile, NotPrepared, SourceNotFound
from laion_face_builder.files import FINGERPRINT_KEY
from laion_face_builder.index.removals import settled
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.publish.card import measured_head, schema_of, split_card
from laion_face_builder.publish.destination import destination_at
from laion_face_builder.publish.manifest import (
    CARD,
    CROISSANT,
    LICENCE,
    MANIFEST,
    PREVIEW,
    PREVIEW_FILE,
    Entry,
    Manifest,
    is_ours,
)
from laion_face_builder.publish.published_files import columns_in, ids_bytes
from laion_face_builder.publish.published_form import form_faults, is_in_form
from laion_face_builder.publish.targets import Destination, OutgoingFile, PublishedPlace, is_folder
from laion_face_builder.shown import ranges, short
from laion_face_builder.sources.hub import Token
from laion_face_builder.values import absolute
from laion_face_builder.verify.verify_data import BROKEN, data_problems, prepared_parts
from laion_face_builder.verify.verify_joined import joined_problems


def place_problems(place: PublishedPlace, destination: Destination, deep: bool) -> Iterator[str]:
    """Yield what is wrong with a published place, a line each: the file, and what was found.

    Args:
        deep: read every page of every file against its checksum. Without it a folder's files are hashed, and of a Hub
            dataset's the SHA-256s that the Hub states are compared, and ids and footers are read.
    """
    try:
        manifest = place.manifest()
    except BadFile as error:
        yield str(error)
        return
    if manifest is None:
        yield f"{MANIFEST}: is missing, so that nothing is known of what should be here"
        return
    held = destination.listing()
    if CROISSANT not in held:
        yield f"{CROISSANT}: is missing"
    yield from destination.check([_outgoing(entry) for entry in manifest.entries.values()])
    yield from (
        f"{name}: is not in the manifest" for name in sorted(held) if is_ours(name) and name not in manifest.entries
    )
    yield from (f"{CARD}: {problem}" for problem in _card_problems(place, manifest))
    _say_what_is_old(place, manifest)
    for name, entry in sorted(manifest.entries.items()):
        if name in held:
            yield from (f"{name}: {problem}" for problem in _file_problems(place, manifest, entry, deep))


def _say_what_is_old(place: PublishedPlace, manifest: Manifest) -> None:
    """Warn of files in the form of an earlier version: nothing is wrong with them, and they cost their readers more."""
    old = sorted(name for name, entry in manifest.entries.items() if not is_in_form(entry.fingerprint))
    if old:
        logger.warning(
            "%s: in the form of an earlier version, which costs readers from afar more: %s. Publish again to the same "
            "place: what is so is made and sent anew, once",
            place.name,
            old[0] + (f" and {len(old) - 1} more" if len(old) > 1 else ""),
        )


def _outgoing(entry: Entry) -> OutgoingFile:
    return OutgoingFile(entry.name, Path(entry.name), entry.size, entry.sha256)


def _card_problems(place: PublishedPlace, manifest: Manifest) -> Iterator[str]:
    text = place.read(CARD)
    if text is None:
        yield "is missing"
        return
    try:
        head, _ = split_card(text.decode(), CARD)
    except (BadFile, ValueError):
        yield "has no YAML head"
        return
    for key, value in measured_head(manifest).items():
        if head.get(key) != value:
            yield f"{key} is not what the manifest gives"
    if head.get("license_link") == LICENCE and place.read(LICENCE) is None:
        yield f"links to {LICENCE}, which is missing"


def _file_problems(place: PublishedPlace, manifest: Manifest, entry: Entry, deep: bool) -> Iterator[str]:
    try:
        with place.parquet(entry.name) as file:
            yield from _footer_problems(file, manifest, entry)
            if file.schema_arrow.names != _schema_of(manifest, entry).names:
                return
            ids, columns = hashlib.sha256(), None if deep else ["sample_id"]
            for group in range(file.num_row_groups):
                ids.update(ids_bytes(file.read_row_group(group, columns=columns)["sample_id"]))
            if ids.hexdigest() != entry.sample_ids:
                yield "its sample ids, or their order, are not those of the manifest"
    except BROKEN as error:
        yield f"cannot be read: {short(error)}"


def _schema_of(manifest: Manifest, entry: Entry) -> pa.Schema:
    return schema_of(manifest, PREVIEW if entry.name == PREVIEW_FILE else "")


def _footer_problems(file: OpenParquet, manifest: Manifest, entry: Entry) -> Iterator[str]:
    schema = _schema_of(manifest, entry)
    if not file.schema_arrow.remove_metadata().equals(schema):
        yield f"columns are {columns_in(file.schema_arrow)}; expected {', '.join(schema.names)}"
    rows, groups = file.metadata.num_rows, file.num_row_groups
    if (rows, groups) != (entry.rows, entry.row_groups):
        yield f"{rows} rows in {groups} row groups; the manifest has {entry.rows} in {entry.row_groups}"
    stamp = json.loads((file.metadata.metadata or {}).get(FINGERPRINT_KEY, b"null"))
    if stamp != entry.fingerprint:
        yield f"its fingerprint is {stamp}; the manifest has {entry.fingerprint}"
    elif is_in_form(entry.fingerprint):
        is_index = manifest.kind == "index" and entry.name != PREVIEW_FILE
        yield from form_faults(file.metadata, file.chunks, is_index)


@dataclass(frozen=True)
class Verification:
    """What was verified, for people, and the problems, one line each, found as they are iterated."""

    about: str
    problems: Iterator[str]


def verify(place: str, *, deep: bool = False, revision: str | None = None, token: Token = None) -> Verification:
    """Verify a DATA_DIR, a published folder or a Hub dataset "owner/name", whichever `place` is.

    Args:
        deep: hash every picture and read every page, rather than samples and footers.

    Raises:
        NotPrepared: it is none of these; SourceError: the Hub does not answer, or has no such dataset.
        StateConflict: a removal from this DATA_DIR is not finished.
    """
    root = absolute(place)
    if root.is_file():
        raise NotPrepared(f"{place}: it is a file, expected a DATA_DIR, a published folder or a Hub dataset owner/name")
    if is_folder(place):
        if not root.is_dir():
            raise NotPrepared(f"{place}: there is no such folder")
        data = DataDir.at(root)
        if not (root / MANIFEST).exists() and (prepared_parts(data) or not (root / CARD).exists()):
            return _of_data(data, deep)
    destination = destination_at(place, private=False, revision=revision, token=token)
    found = PublishedPlace.at(place, revision, token)
    try:
        found.require()
    except SourceNotFound as error:
        folder = "" if revision else f". Nor is there a folder {place}"
        raise SourceNotFound(f"{error}{folder}") from error
    return Verification(f"{found.name}: published", place_problems(found, destination, deep))


def _of_data(data: DataDir, deep: bool) -> Verification:
    settled(data)
    parts = prepared_parts(data)
    if not parts:
        raise NotPrepared(f"{data.root}: nothing is prepared or published there. Run `laion-face prepare` first.")
    problems = itertools.chain(data_problems(data, deep), joined_problems(data))
    return Verification(f"{data.root}: parts {ranges(parts, ', ')}", problems)
