"""What `laion-face publish` would make, send and remove; see `forecast`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow.compute as pc

from laion_face_builder.examples import parts
from laion_face_builder.forecast import Amount, Disk, Forecast, Step
from laion_face_builder.images.reasons import Reason
from laion_face_builder.options import Options
from laion_face_builder.parquet_files import table_of
from laion_face_builder.publish.described import described
from laion_face_builder.publish.manifest import (
    CARD,
    CROISSANT,
    LICENCE,
    MANIFEST,
    PREVIEW_FILE,
    Entry,
    Manifest,
    examples_name,
    index_name,
)
from laion_face_builder.publish.publish import (
    Holdings,
    address,
    checked,
    held_now,
    holds,
    kept_of,
    stale_of,
    texts_about,
)
from laion_face_builder.publish.published_files import pictured_parts
from laion_face_builder.publish.request import PublishRequest, most_staged
from laion_face_builder.publish.staging import Staging, known_examples, known_index, known_preview
from laion_face_builder.publish.targets import Destination, OutgoingFile, PublishedFile, PublishedPlace, is_folder
from laion_face_builder.sources.hashes import git_hash_of


@dataclass(frozen=True)
class _File:
    """A file that is to be published.

    Attributes:
        path: where its bytes lie, or will lie.
        entry: what it is; None if it is not known from an earlier run.
        size: bytes, estimated if it has to be made.
        is_made: whether it has to be made first.
        stands_for: what is meant if it is not known how many files there will be; "" if it is one file.
    """

    name: str
    path: Path
    entry: Entry | None
    size: Amount
    is_made: bool = False
    stands_for: str = ""

    @classmethod
    def known(cls, entry: Entry, path: Path) -> _File:
        return cls(entry.name, path, entry, Amount(entry.size))


def forecast_publish(request: PublishRequest) -> Forecast:
    """Say what `publish.publish` would do. Of the target the listing and the small texts are read.

    Files of the same name and size in a target folder are read, as in the real run.

    Raises:
        LaionFaceError: as `publish` raises it before it makes or sends anything.
    """
    options, destination, there, removals = checked(request, is_dry_run=True)
    listing = destination.listing()
    held = held_now(request, destination, there)
    staging = Staging.seen(request.data, address(request), request.kind, there)
    files = list(_files(request, options, staging, held))
    lacking = _lacking(files, held, listing, destination)
    steps = [_step(file, lacking) for file in files]
    kept = kept_of(there, options.parts, bool(request.preview))
    steps += _texts(request, there, Manifest(request.kind, kept, removals=removals), files, listing)
    names = {*kept, *(file.name for file in files)}
    unsure = tuple(file.name.removesuffix(".parquet")[:-5] for file in files if file.stands_for)
    stale = [name for name in stale_of(held, names) if not (unsure and name.startswith(unsure))]
    steps += [Step(name, "removed", "no longer published", Amount(held[name][0])) for name in stale]
    notes = ["files of parts that are made anew may replace others, which are then removed"] if unsure else []
    notes += [f"the gate of the Hub dataset is set: {request.gated}"] if request.gated else []
    return _forecast(request, files, steps, notes)


def _forecast(request: PublishRequest, files: Sequence[_File], steps: Sequence[Step], notes: Sequence[str]) -> Forecast:
    sent = sum((step.size or Amount(0, is_exact=False) for step in steps if step.deed == "sent"), Amount())
    made = [file.size for file in files if file.is_made]
    disks = [Disk.of(request.data.root, _staged(request, made))] if made else []
    target = Path(request.target).expanduser() if is_folder(request.target) else None
    if target is not None:
        disks.append(Disk.of(target, sent))
    send = Amount() if target is not None else sent
    return Forecast("publish", tuple(steps), tuple(disks), send=send, notes=tuple(notes))


def _staged(request: PublishRequest, made: Sequence[Amount]) -> Amount:
    total = sum(made, Amount())
    return Amount(most_staged(request, total.count, max(size.count for size in made)), total.is_exact)


def _files(request: PublishRequest, options: Options, staging: Staging, held: Holdings) -> Iterator[_File]:
    """Yield the files to be published, in the order of the real run."""
    for part in options.parts:
        if request.with_images:
            yield from _examples(request, options, part, staging, held)
        else:
            yield _index(options, part, staging, held)
    if request.preview:
        entry = known_preview(options, request.preview, staging, lambda entry: holds(held, entry))
        path = staging.path(PREVIEW_FILE)
        if entry is not None:
            yield _File.known(entry, path)
        else:
            yield _File(PREVIEW_FILE, path, None, _preview_size(options, request.preview), is_made=True)


def _index(options: Options, part: int, staging: Staging, held: Holdings) -> _File:
    name = index_name(part)
    with parts.index_of(options, part) as index:
        entry = known_index(options, part, index, staging, lambda entry: holds(held, entry))
        # What is made of the same rows again is the same, as long as the libraries are.
        earlier = known_index(options, part, index, staging, lambda _: True)
    if entry is not None:
        return _File.known(entry, staging.path(name))
    size = options.data.index(part).stat().st_size if earlier is None else earlier.size
    return _File(name, staging.path(name), earlier, Amount(size, is_exact=False), is_made=True)


def _examples(
    request: PublishRequest, options: Options, part: int, staging: Staging, held: Holdings
) -> Iterator[_File]:
    with parts.index_of(options, part) as index:
        rows = index.num_rows
    start, number = 0, 0
    for entry in known_examples(options, part, request.bounds, staging, lambda entry: holds(held, entry)):
        yield _File.known(entry, staging.path(entry.name))
        start, number = entry.stop, number + 1
    if number == 0 or start < rows:
        name = examples_name(part, number)
        size = Amount(_picture_bytes(options, part, start), is_exact=False)
        yield _File(name, staging.path(name), None, size, is_made=True, stands_for="and those that follow")


def _picture_bytes(options: Options, part: int, start: int) -> int:
    """Add up the bytes of the pictures from an index row on."""
    lengths = table_of(options.data.sidecar(part), ["length"])["length"].slice(start)
    return int(pc.sum(lengths).as_py() or 0)


def _preview_size(options: Options, rows: int) -> Amount:
    """Estimate the preview's size from the first pictures that there are, whatever the filters."""
    size = 0
    for part in pictured_parts(options):
        table = table_of(options.data.sidecar(part), ["status", "length"])
        lengths = table.filter(pc.equal(table["status"], Reason.OK))["length"].slice(0, rows)
        size, rows = size + int(pc.sum(lengths).as_py() or 0), rows - len(lengths)
    return Amount(size, is_exact=False)


def _lacking(
    files: Sequence[_File], held: Holdings, listing: Mapping[str, PublishedFile], destination: Destination
) -> set[str]:
    """Name the files that would be sent, as `publish._Job` and the destination itself decide."""
    certain = {file.name for file in files if file.is_made or (not file.entry and _size_of(listing, file) is None)}
    asked = [
        OutgoingFile(file.name, file.path, file.entry.size, file.entry.sha256)
        if file.entry
        else OutgoingFile.of(file.name, file.path)
        for file in files
        if file.name not in certain and (file.entry is None or not holds(held, file.entry) or file.path.exists())
    ]
    return {*certain, *(file.name for file in destination.lacks(asked))}


def _size_of(listing: Mapping[str, PublishedFile], file: _File) -> int | None:
    """Give the file's size if the target has one of the same size, else None: then bytes need not be compared."""
    there = listing.get(file.name)
    return there.size if there and there.size == file.size.count else None


def _step(file: _File, lacking: set[str]) -> Step:
    why = ", ".join(filter(None, (file.stands_for, "made first" if file.is_made else "")))
    return Step(file.name, "sent" if file.name in lacking else "used as it is", why, file.size)


def _texts(
    request: PublishRequest,
    there: Manifest | None,
    kept: Manifest,
    files: Sequence[_File],
    listing: Mapping[str, PublishedFile],
) -> Iterator[Step]:
    """Forecast manifest, Croissant, licences and card. What they say is known only if every file is.

    Args:
        there: what the place holds now.
        kept: what stays of that, and what was taken down.
    """
    entries = {file.name: file.entry for file in files if file.entry is not None}
    if len(entries) < len(files):
        yield from (Step(name, "sent", "some kB") for name in (MANIFEST, CROISSANT, LICENCE, CARD))
        return
    place = PublishedPlace.at(request.target, request.revision, request.token)
    manifest = described(request, there, {**kept.entries, **entries}, kept.removals)
    for name, text in texts_about(request, manifest).items():
        if _is_same(listing.get(name), text.encode(), place, name):
            yield Step(name, "used as it is", size=Amount(len(text.encode())))
        else:
            yield Step(name, "sent", size=Amount(len(text.encode())))


def _is_same(there: PublishedFile | None, text: bytes, place: PublishedPlace, name: str) -> bool:
    if there is None or there.size != len(text):
        return False
    if there.sha256 is not None:
        return there.sha256 == sha256(text).hexdigest()
    if there.git_sha1 is not None:
        return there.git_sha1 == git_hash_of(text)
    return place.read(name) == text
