"""`laion-face publish`: make and send the parts, one after the other, the card last.

Files are made, sent and deleted in batches, so that a publish needs disk space for one batch and no more. What the
target holds already, from an earlier publish, stays: parts may be published one by one, and an interrupted publish goes
on.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from laion_face_builder import progress
from laion_face_builder.errors import LaionFaceError, SourceNotFound, StateConflict
from laion_face_builder.files import human_size, written_whole
from laion_face_builder.index.removals import Removals, settled
from laion_face_builder.log import logger
from laion_face_builder.options import Options
from laion_face_builder.publish.card import card_of, licence_of
from laion_face_builder.publish.card_snippets import Address
from laion_face_builder.publish.croissant import croissant_of
from laion_face_builder.publish.described import described
from laion_face_builder.publish.destination import destination_at
from laion_face_builder.publish.manifest import (
    CARD,
    CROISSANT,
    LICENCE,
    MANIFEST,
    PREVIEW_FILE,
    Entry,
    Manifest,
    is_ours,
)
from laion_face_builder.publish.overtaken import Basis
from laion_face_builder.publish.published_columns import features_of
from laion_face_builder.publish.published_files import check_preview
from laion_face_builder.publish.request import PublishRequest, check_given, check_rights, check_room, options_of
from laion_face_builder.publish.staging import Staging, made_examples, made_index, made_preview
from laion_face_builder.publish.targets import Destination, OutgoingFile, PublishedPlace, is_folder
from laion_face_builder.publish.withdrawn import kept_to
from laion_face_builder.shown import ranges
from laion_face_builder.values import absolute


def publish(request: PublishRequest) -> Manifest:
    """Publish, check that the target then has what it was to have, and give the manifest of what is there.

    Raises:
        OptionError: pictures would become public; NotPrepared: parts or pictures are missing.
        StateConflict: the target holds the other kind of files; or somebody else changed it meanwhile.
        SourceError: the Hub refuses or does not answer.
    """
    options, destination, there, removals = checked(request)
    with Staging.at(request.data, address(request), request.kind, there) as staging:
        if _basis_of(_already_there(request)) == _basis_of(there):
            held = held_now(request, destination, there)
            job = _Job(request, options, destination, staging, held)
            manifest = job.run(there, removals)
            staging.finish()
            return manifest
    return publish(request)  # Whoever was waited for has published since.


def checked(
    request: PublishRequest, *, is_dry_run: bool = False
) -> tuple[Options, Destination, Manifest | None, Removals]:
    """Check that the request can and may be done; give the options, the destination, and the manifest that is there.

    With them come all removals that are to be kept to.

    Args:
        is_dry_run: whether nothing may be made.

    Raises:
        LaionFaceError: as `publish`, or the disk has no room.
    """
    check_given(request)
    check_rights(request)
    options = options_of(request, is_dry_run=is_dry_run)
    check_room(request, options)
    if request.preview:
        check_preview(options)
    destination = destination_at(
        request.target,
        private=request.private,
        gated=request.gated,
        revision=request.revision,
        token=request.token,
    )
    there = _already_there(request)
    _refuse_other_columns(request, options, there)
    options, removals = kept_to(options, there)
    return options, destination, there, removals


class _Job:
    """One publish: what has been made so far, and what waits to be sent."""

    def __init__(
        self,
        request: PublishRequest,
        options: Options,
        destination: Destination,
        staging: Staging,
        held: dict[str, tuple[int, str | None]],
    ) -> None:
        self._request, self._options, self._destination, self._staging = request, options, destination, staging
        self._held = held
        self._waiting: list[OutgoingFile] = []
        self._sent = 0
        self._basis, self._removals = Basis(None), Removals()

    def run(self, there: Manifest | None, removals: Removals) -> Manifest:
        entries: dict[str, Entry] = {}
        self._basis, self._removals = _basis_of(there), removals
        for entry in self._made():
            entries[entry.name] = entry
        self._flush()
        kept = kept_of(there, self._options.parts, bool(self._request.preview))
        manifest = described(self._request, there, {**kept, **entries}, removals)
        about = self._about(manifest)
        self._refuse_removed_since()
        self._sent += self._destination.send(about, "Describe what is published", self._basis)
        self._basis = Basis(manifest.as_text().encode())
        self._remove(manifest)
        self._check(manifest, about)
        return manifest

    def _made(self) -> Iterator[Entry]:
        """Yield every file that is to be there, made and queued if it is not there yet."""
        parts = self._options.parts
        with progress.bar("publish", len(parts)) as bar:
            for number, part in enumerate(parts, 1):
                with progress.nth("part", number, len(parts)):
                    yield from self._part(part)
                bar.update()
        if self._request.preview:
            yield from self._queued(made_preview(self._options, self._request.preview, self._staging, self._is_held))

    def _part(self, part: int) -> Iterator[Entry]:
        if self._request.with_images:
            made = made_examples(self._options, part, self._request.bounds, self._staging, self._is_held)
        else:
            made = made_index(self._options, part, self._staging, self._is_held)
        yield from self._queued(made)

    def _queued(self, made: Iterator[tuple[Entry, Path]]) -> Iterator[Entry]:
        for entry, path in made:
            # Of what is here too, the target itself tells best whether it has it: it compares the bytes.
            if not self._is_held(entry) or path.exists():
                self._waiting.append(OutgoingFile(entry.name, path, entry.size, entry.sha256))
                if sum(file.size for file in self._waiting) >= self._request.batch_bytes:
                    self._flush()
            yield entry

    def _is_held(self, entry: Entry) -> bool:
        """Say whether the target has this very file, by size, and by SHA-256 where the target states one."""
        return holds(self._held, entry)

    def _flush(self) -> None:
        if not self._waiting:
            return
        self._refuse_removed_since()
        names = [file.name for file in self._waiting]
        message = f"Add {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")
        self._sent += self._destination.send(self._waiting, message, self._basis)
        for file in self._waiting:
            self._staging.free(file.name)
            self._held[file.name] = (file.size, file.sha256)
        self._waiting = []

    def _refuse_removed_since(self) -> None:
        """Raise StateConflict if rows were taken down from DATA_DIR since this began: what was made may have them."""
        if since := settled(self._request.data).removed - self._removals.removed:
            raise StateConflict(
                f"{self._request.data.removed}: {since} were taken down since this publish began. Run it again: what "
                "has none of it is not made again"
            )

    def _about(self, manifest: Manifest) -> list[OutgoingFile]:
        return [self._text(name, text) for name, text in texts_about(self._request, manifest).items()]

    def _text(self, name: str, text: str) -> OutgoingFile:
        path = self._staging.path("about") / name
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return OutgoingFile.of(name, path)

    def _remove(self, manifest: Manifest) -> None:
        """Remove files that an earlier publish left, finished or not, and that the card does not name."""
        if stale := stale_of(self._held, manifest.entries):
            self._destination.remove(stale, "Remove what is no longer published", self._basis)

    def _check(self, manifest: Manifest, about: Sequence[OutgoingFile]) -> None:
        entries = [
            OutgoingFile(e.name, self._staging.path(e.name), e.size, e.sha256) for e in manifest.entries.values()
        ]
        problems = self._destination.check([*entries, *about])
        if problems:
            raise LaionFaceError(
                f"{self._request.target}: after publishing, {len(problems)} files are not what they should be: "
                f"{'; '.join(problems[:5])}. Delete them there and run the same command again."
            )
        size = human_size(sum(entry.size for entry in manifest.entries.values()))
        logger.info(
            "%s: %d files, %s of parts %s, checked; %s were sent",
            self._request.target,
            len(manifest.entries),
            size,
            ranges(manifest.parts, ", "),
            human_size(self._sent),
        )


#: Size of each file that the target has, and its SHA-256 where that is stated.
Holdings = Mapping[str, tuple[int, str | None]]


def held_now(
    request: PublishRequest, destination: Destination, there: Manifest | None
) -> dict[str, tuple[int, str | None]]:
    """Give size and SHA-256 of what the target has, by name; not of files that are no longer what was sent.

    Of a folder that shows when the files are read, which is done for an index: pictures are too many.
    """
    held = {name: (file.size, file.sha256) for name, file in destination.listing().items()}
    if there is not None and not request.with_images:
        sent = [OutgoingFile(e.name, Path(e.name), e.size, e.sha256) for e in there.entries.values()]
        for file in destination.lacks(sent):
            held.pop(file.name, None)
    return held


def holds(held: Holdings, entry: Entry) -> bool:
    """Say whether the target has this very file, by size, and by SHA-256 where the target states one."""
    size, sha256 = held.get(entry.name, (-1, None))
    return size == entry.size and sha256 in (None, entry.sha256)


def stale_of(held: Iterable[str], published: Container[str]) -> list[str]:
    """List files that an earlier publish left, finished or not, and that are not among those to be published."""
    return sorted(name for name in held if is_ours(name) and name not in published)


def texts_about(request: PublishRequest, manifest: Manifest) -> dict[str, str]:
    """Write manifest, Croissant, licences and card; the card last, since `datasets` goes by it."""
    is_hub = not is_folder(request.target)
    address = Address(request.target if is_hub else "path/to/this/folder", is_hub, request.revision or "main")
    return {
        MANIFEST: manifest.as_text(),
        CROISSANT: croissant_of(manifest, address),
        LICENCE: licence_of(manifest),
        CARD: card_of(manifest, address),
    }


def _basis_of(there: Manifest | None) -> Basis:
    return Basis(None if there is None else there.text)


def _place_of(request: PublishRequest) -> PublishedPlace:
    """Give the place as it is now: main, where a branch is to be made, since it begins as main is."""
    place = PublishedPlace.at(request.target, request.revision, request.token)
    if request.revision is not None:
        try:
            place.require()
        except SourceNotFound:
            return PublishedPlace.at(request.target, None, request.token)
    return place


def _already_there(request: PublishRequest) -> Manifest | None:
    there = _place_of(request).manifest()
    if there is not None and there.kind != request.kind:
        has = {"index": "the index without pictures", "examples": "parts with pictures"}[there.kind]
        raise StateConflict(f"{request.target}: holds {has}. Publish to another place, or empty that one first.")
    if there is None and is_folder(request.target) and (card := absolute(request.target) / CARD).exists():
        # Ours comes last of all, after the manifest.
        raise StateConflict(f"{card}: found one that no publish wrote. Publish to another folder, or move it away.")
    return there


def _refuse_other_columns(request: PublishRequest, options: Options, there: Manifest | None) -> None:
    """Raise StateConflict if parts that stay have other columns beside ours: a config has one set of them."""
    mine = features_of(options.more) if options.tables and options.more is not None else []
    for entry in kept_of(there, options.parts, bool(request.preview)).values():
        if entry.fingerprint.get("columns", []) != mine:
            names = [str(column["name"]) for column in entry.fingerprint.get("columns", [])]
            raise StateConflict(
                f"{request.target}: {entry.name} has {', '.join(names) or 'nothing'} beside our columns, and these "
                f"parts would have {', '.join(column['name'] for column in mine) or 'nothing'}. Publish all parts "
                "together, with the same --join, or to another place."
            )


def kept_of(there: Manifest | None, parts: Sequence[int], new_preview: bool) -> dict[str, Entry]:
    """Give what stays of an earlier publish: other parts, and its preview unless there is a new one."""
    if there is None:
        return {}
    return {
        name: entry
        for name, entry in there.entries.items()
        if entry.part not in parts and not (name == PREVIEW_FILE and new_preview)
    }


def address(request: PublishRequest) -> str:
    """Give one name for the target, however it was written."""
    if is_folder(request.target):
        return str(absolute(request.target))
    return f"{request.target}@{request.revision or 'main'}"
