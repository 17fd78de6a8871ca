"""Say of a publish what its files do not say: the proofs of their joins, who publishes, what changed and on which day.

All of it goes into the manifest, from which card and Croissant are made. What was said of parts that stay, stays.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from laion_face_builder import __version__
from laion_face_builder.files import read_fingerprint
from laion_face_builder.index.removals import Removals, without_stamp
from laion_face_builder.index.writer import proof_path
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.manifest import PREVIEW_FILE, Entry, Manifest, Publisher
from laion_face_builder.publish.request import PublishRequest

#: Seconds since 1970 to be taken for now, by which builds are made reproducible (reproducible-builds.org).
EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"


def described(
    request: PublishRequest, there: Manifest | None, entries: Mapping[str, Entry], removals: Removals
) -> Manifest:
    """Give the manifest of a place that is to hold `entries`.

    Args:
        there: what the place holds before, if anything.
        entries: all files, those that stay and those of this publish.
        removals: what was taken down.
    """
    before = there or Manifest(request.kind)
    parts = {entry.part for entry in entries.values() if entry.part >= 0}
    joins = {str(part): join for part in sorted(parts) if (join := _join(request.data, part, before, entries))}
    publisher = _publisher(request, before.publisher)
    return with_change(before.entries, Manifest(request.kind, entries, joins, publisher, before.history, removals))


def with_change(before: Mapping[str, Entry], manifest: Manifest) -> Manifest:
    """Add to a manifest's history what changes with it, if anything does.

    Args:
        before: the files that were there.
    """
    change = _change(before, manifest)
    return manifest if change is None else replace(manifest, history=(*manifest.history, change))


def _join(data: DataDir, part: int, before: Manifest, entries: Mapping[str, Entry]) -> Mapping[str, Any] | None:
    """Give the proof of a part's join: of files that stay the one they came with, else the one beside the index."""
    mine = {name: entry for name, entry in entries.items() if entry.part == part}
    kept = before.joins.get(str(part))
    if kept is not None and mine == {name: entry for name, entry in before.entries.items() if entry.part == part}:
        return kept
    try:
        proof = json.loads(proof_path(data.index(part)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # A copied index has none; `verify` finds what should be there, and cannot be read.
    if not isinstance(proof, dict):
        return None
    # What was taken down since is no part of the join.
    made_from, index = (
        without_stamp(one or {}) for one in (proof.get("made_from"), read_fingerprint(data.index(part)))
    )
    return proof if made_from == index else None


def _publisher(request: PublishRequest, before: Publisher) -> Publisher:
    gated = {None: before.gated, "off": ""}.get(request.gated, request.gated)
    contact = before.contact if request.contact is None else request.contact
    public = request.public_pictures or (before.public_pictures and not request.private)
    return Publisher(contact, gated or "", public)


def _change(before: Mapping[str, Entry], manifest: Manifest) -> dict[str, Any] | None:
    """Say which parts came or changed, and how many rows there are then; None if the files are as they were."""
    old, new = _bytes_by_part(before), _bytes_by_part(manifest.entries)
    if old == new:
        return None
    parts = {
        "added": sorted(new.keys() - old.keys() - {-1}),
        "changed": sorted(part for part in new.keys() & old.keys() - {-1} if new[part] != old[part]),
        "removed": sorted(old.keys() - new.keys() - {-1}),
    }
    rows = sum(entry.rows for entry in manifest.entries.values() if entry.name != PREVIEW_FILE)
    is_preview = {"preview": True} if old.get(-1) != new.get(-1) else {}
    found = {what: which for what, which in parts.items() if which}
    return {"date": _today(), "version": __version__, **found, **is_preview, "rows": rows}


def _bytes_by_part(entries: Mapping[str, Entry]) -> dict[int, set[tuple[str, str]]]:
    found: dict[int, set[tuple[str, str]]] = {}
    for entry in entries.values():
        found.setdefault(entry.part, set()).add((entry.name, entry.sha256))
    return found


def _today() -> str:
    """Give the day, in UTC, as 2026-01-31."""
    given = os.environ.get(EPOCH_VARIABLE, "")
    now = int(given) if given.isascii() and given.isdigit() else time.time()
    return datetime.datetime.fromtimestamp(now, datetime.timezone.utc).date().isoformat()
