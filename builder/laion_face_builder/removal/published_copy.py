"""Take rows out of a published copy: those of its files that have any are written and sent again, and no others.

Which rows go is told by hashes alone, so that it needs no DATA_DIR. What was taken down is then remembered in the
copy's manifest. It may be killed anywhere: started again it finds what is left to be done by what lies there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.errors import LaionFaceError, NotPrepared
from laion_face_builder.files import FINGERPRINT_KEY, Fingerprint, digest, locked, sha256_of
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.removals import STAMP, Removals
from laion_face_builder.index.removed import Removed, hash_of
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.described import with_change
from laion_face_builder.publish.destination import destination_at
from laion_face_builder.publish.hub_history import History, rest_of_history
from laion_face_builder.publish.hub_target import HubDestination
from laion_face_builder.publish.manifest import MANIFEST, Entry, Manifest
from laion_face_builder.publish.overtaken import Basis
from laion_face_builder.publish.publish import texts_about
from laion_face_builder.publish.published_files import contents, measured
from laion_face_builder.publish.published_form import in_form
from laion_face_builder.publish.request import PublishRequest
from laion_face_builder.publish.targets import Destination, OutgoingFile, PublishedFile, PublishedPlace
from laion_face_builder.publish.without_rows import rewrite_without
from laion_face_builder.shown import short
from laion_face_builder.sources.hub import Token
from laion_face_builder.temporary import make_folder, remove_folder

#: Rows with pictures are looked at so many at a time.
_ROWS_AT_ONCE = 256
_BATCH_BYTES = 4_000_000_000


@dataclass(frozen=True)
class TargetRequest:
    """What is to leave a published copy.

    Attributes:
        target: a folder, or a Hub dataset "owner/name".
        removals: what is taken down: DATA_DIR's own, or one that was made for this copy alone.
        revision: the branch on the Hub; None means "main".
        squash_history: the branch's earlier commits, and the files that only they have, are deleted from the Hub.
        is_dry_run: nothing is changed.
        batch_bytes: one commit is up to so many bytes.
    """

    target: str
    removals: Removals
    revision: str | None = None
    token: Token = field(default=None, repr=False)
    squash_history: bool = False
    is_dry_run: bool = False
    batch_bytes: int = _BATCH_BYTES


@dataclass(frozen=True)
class TargetResult:
    """What became of a published copy.

    Attributes:
        rows: how many were taken out, those of the preview counted again.
        rewritten: the names of the files that had any.
        sent: bytes that were sent.
        history: where else the Hub still serves them; None for a folder, which has no history.
    """

    target: str
    rows: int
    rewritten: tuple[str, ...]
    sent: int
    history: History | None

    def __str__(self) -> str:
        return f"{self.target}: {self.rows:,} rows taken out of {len(self.rewritten):,} files"


def remove_from_target(request: TargetRequest) -> TargetResult:
    """Take what is removed out of the copy, and have its manifest remember that.

    Raises:
        NotPrepared: nothing was published there; BadFile: a file there is damaged.
        StateConflict: somebody else changed it meanwhile.
        SourceError, PublishError: the Hub does not answer, or refuses.
    """
    place = PublishedPlace.at(request.target, request.revision, request.token)
    destination = destination_at(request.target, revision=request.revision, token=request.token)
    place.require()
    there = place.manifest()
    if there is None:
        raise NotPrepared(f"{place.name}: nothing was published there, it has no {MANIFEST}")
    removals, hits = _named(place, there, there.removals.merged_with(request.removals).published())
    with _working() as folder:
        sent, manifest = _Rewriting(request, place, destination, folder).run(replace(there, removals=removals), hits)
    history = None
    if isinstance(destination, HubDestination) and (removals.done or request.squash_history):
        squash = request.squash_history and not request.is_dry_run
        present = {entry.sha256 for entry in manifest.entries.values()}
        history = rest_of_history(destination, present, removals.removed, squash=squash)
    return TargetResult(request.target, sum(int(hit.sum()) for hit in hits.values()), tuple(hits), sent, history)


def free_staging(data: DataDir) -> int:
    """Delete what was made for a publish and not sent, which has rows in it; return the bytes that are freed.

    The next publish makes it again, without them. One that is going on is waited for.
    """
    size = 0
    for folder in sorted(path for path in (data.root / "publish").glob("*") if path.is_dir()):
        with locked(folder, f"{folder}: a publish is going on; waiting for it"):
            size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
    return size


@contextmanager
def _working() -> Iterator[Path]:
    folder = make_folder("removal")
    try:
        yield folder
    finally:
        remove_folder(folder)


def _named(place: PublishedPlace, manifest: Manifest, removals: Removals) -> tuple[Removals, dict[str, Mask]]:
    """Look for the rows that are named, bool[n] for each file with any, and note their ids.

    A row that is found by its address or picture is then known by its id, under which other files have it too.
    """
    hits: dict[str, Mask] = {}
    if removals.removed.has_pictures:
        for name in _with_images(place, manifest):
            with place.parquet(name) as file:
                hits[name], found = _names_pictures(file, removals.removed)
            removals = _with_found(removals, found)
    known = wanted = removals.removed
    while wanted:
        with progress.bar("look through", len(manifest.entries), "file") as bar:
            for name in sorted(manifest.entries):
                with place.parquet(name) as file:
                    gone, found = _names_rows(file, wanted)
                removals = _with_found(removals, found)
                hits[name] = hits.get(name, np.False_) | gone
                bar.update()
        known, wanted = removals.removed, removals.removed - known
    return removals, {name: hits[name] for name in sorted(hits) if hits[name].any()}


Found = dict[int, set[str]]


def _with_images(place: PublishedPlace, manifest: Manifest) -> list[str]:
    preview = [manifest.preview.name] if manifest.preview else []
    return sorted(manifest.entries) if manifest.kind == "examples" else preview


def _with_found(removals: Removals, found: Found) -> Removals:
    for part, hashes in found.items():
        if new := hashes - removals.found_in(part):
            removals = removals.with_found(part, new)
    return removals


def _names_rows(file: pq.ParquetFile, removed: Removed) -> tuple[Mask, Found]:
    """Tell, bool[n], which rows of a file are named by id, address or host; and their hashes, by part."""
    gone, found = [np.zeros(0, bool)], Found()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["sample_id", "url", "part"])
        gone.append(removed.mask(table))
        _note(found, table, gone[-1])
    return np.concatenate(gone), found


def _names_pictures(file: pq.ParquetFile, removed: Removed) -> tuple[Mask, Found]:
    """Tell, bool[n], which rows of a file have a picture that is named; and their hashes, by part."""
    gone, found = [np.zeros(0, bool)], Found()
    if "image" not in file.schema_arrow.names or not removed.has_pictures:
        return np.zeros(file.metadata.num_rows, bool), found
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["sample_id", "part", "image"]):
        pictures = batch["image"].field("bytes").to_pylist()
        named = [data is not None and removed.names_picture(data, [_sha256(data)]) for data in pictures]
        gone.append(np.array(named, bool))
        _note(found, pa.Table.from_batches([batch]), gone[-1])
    return np.concatenate(gone), found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _note(found: Found, rows: pa.Table, gone: Mask) -> None:
    if gone.any():
        named = rows.select(["part", "sample_id"]).filter(pa.array(gone)).to_pylist()
        for row in named:
            found.setdefault(row["part"], set()).add(hash_of("sample_ids", row["sample_id"]))


class _Rewriting:
    """One removal from a published copy: what waits to be sent, and how much was."""

    def __init__(self, request: TargetRequest, place: PublishedPlace, destination: Destination, folder: Path) -> None:
        self._request, self._place, self._destination, self._folder = request, place, destination, folder
        self._basis = Basis(None)
        self._waiting: list[OutgoingFile] = []
        self._made: set[str] = set()
        self._sent = 0

    def run(self, manifest: Manifest, hits: Mapping[str, Mask]) -> tuple[int, Manifest]:
        """Rewrite what has hits, send it, and give the bytes that were sent and the manifest that is there then.

        Which rows go is noted there first: whoever goes on after a kill does not see those that are gone already.

        Args:
            manifest: as it is there, with the removals that it is to have.
        """
        if self._request.is_dry_run:
            return 0, manifest
        self._basis = Basis(manifest.text)
        if hits:
            self._waiting = [self._text(MANIFEST, manifest.as_text())]
            self._flush()
        held = self._destination.listing()
        left: dict[int, int] = {}
        entries: dict[str, Entry] = {}
        for name in sorted(manifest.entries):
            entry = manifest.entries[name]
            if name in hits:
                new = self._rewritten(entry, hits[name], manifest.removals)
            else:
                new = self._as_it_is(entry, held.get(name))
            before = left.get(entry.part, 0)
            left[entry.part] = before + entry.rows - new.rows
            entries[name] = replace(new, first=entry.first - before, stop=entry.stop - left[entry.part])
        manifest = with_change(manifest.entries, replace(manifest, entries=entries))
        return self._finish(manifest), manifest

    def _rewritten(self, entry: Entry, gone: Mask, removals: Removals) -> Entry:
        path = self._folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._place.parquet(entry.name) as file:
            rewrite_without(path, file, gone, self._fingerprint(entry, file, gone, removals))
        new = measured(path, entry.name, entry.part, (entry.first, entry.stop))
        self._waiting.append(OutgoingFile(new.name, path, new.size, new.sha256))
        self._made.add(new.name)
        if sum(file.size for file in self._waiting) >= self._request.batch_bytes:
            self._flush()
        return new

    def _fingerprint(self, entry: Entry, file: pq.ParquetFile, gone: Mask, removals: Removals) -> Fingerprint:
        """Give the fingerprint of the file without its rows: what the part lacks, or what the preview does."""
        if entry.part >= 0:
            return in_form({**entry.fingerprint, **removals.stamp(entry.part)})
        ids = file.read(columns=["sample_id"])["sample_id"].filter(pa.array(gone)).to_pylist()
        known = entry.fingerprint.get(STAMP, "")
        stamp = digest([known, *sorted(hash_of("sample_ids", one) for one in ids)])
        return in_form({**entry.fingerprint, STAMP: stamp})

    def _as_it_is(self, entry: Entry, held: PublishedFile | None) -> Entry:
        """Give the entry of a file without hits: a new one if an earlier run was killed after it had sent the file."""
        with self._place.parquet(entry.name) as file:
            stamp = json.loads((file.metadata.metadata or {}).get(FINGERPRINT_KEY, b"{}"))
            if stamp == entry.fingerprint and file.metadata.num_rows == entry.rows:
                return entry
            found = contents(file)
        sha256 = held.sha256 if held is not None else None
        if self._place.folder is not None:
            sha256 = sha256_of(self._place.folder / entry.name)
        if held is None or sha256 is None:
            raise LaionFaceError(f"{self._place.name}: {entry.name} is not what its manifest says. Publish it again")
        return replace(entry, size=held.size, sha256=sha256, fingerprint=stamp, **found)

    def _finish(self, manifest: Manifest) -> int:
        """Send the last files together with the manifest, and check that the copy then has what it was to have."""
        request = PublishRequest(DataDir(self._folder), self._request.target, revision=self._request.revision)
        texts = [self._text(name, text) for name, text in texts_about(request, manifest).items()]
        self._waiting += texts
        self._flush()
        entries = [OutgoingFile(e.name, self._folder / e.name, e.size, e.sha256) for e in manifest.entries.values()]
        if problems := self._destination.check([*entries, *texts]):
            raise LaionFaceError(
                f"{self._request.target}: after the removal {len(problems)} files are not what they should be: "
                f"{short('; '.join(problems[:5]), 600)}. Run the same command again"
            )
        return self._sent

    def _text(self, name: str, text: str) -> OutgoingFile:
        path = self._folder / name
        path.write_text(text, encoding="utf-8")
        return OutgoingFile.of(name, path)

    def _flush(self) -> None:
        self._sent += self._destination.send(self._waiting, "Take down rows", self._basis)
        for file in self._waiting:
            if file.name == MANIFEST:
                self._basis = Basis(file.path.read_bytes())
            elif file.name in self._made:
                file.path.unlink()
        self._waiting = []
