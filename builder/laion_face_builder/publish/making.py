"""From prepared parts to published files: each made once, or known from an earlier run and left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from laion_face_builder.files import Fingerprint
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.options import Options
from laion_face_builder.publish.image_files import Bounds, PartExamples, examples_fingerprint
from laion_face_builder.publish.index_files import is_publishable, published_fingerprint, write_published
from laion_face_builder.publish.manifest import PREVIEW_FILE, Entry, examples_name, index_name
from laion_face_builder.publish.preview_files import preview_fingerprint, write_preview
from laion_face_builder.publish.staging import Staging
from laion_face_builder.publish.tables import measured

#: Whether the target holds the file that an entry speaks of.
IsHeld = Callable[[Entry], bool]
#: A file, and where its bytes lie here; nothing lies there if the target holds it.
Made = tuple[Entry, Path]


def made_index(options: Options, part: int, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """The part's one file: the prepared one itself, if it can be published as it is."""
    source, name = options.data.index(part), index_name(part)
    as_it_is = is_publishable(source, options.filters)
    path = source if as_it_is else staging.path(name)
    with IndexPart.open(source) as index:
        fingerprint = published_fingerprint(index, options.filters)
        known = _known(staging, name, fingerprint, path, is_held)
        if known is None or (as_it_is and known.size != path.stat().st_size):
            if not as_it_is:
                write_published(path, index, options.filters)
            known = measured(path, name, part, (0, index.num_rows))
            staging.note(known)
    yield known, path


def made_examples(options: Options, part: int, bounds: Bounds, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """The part's files in order. Those that are known are not made again; the others start where the last one stops."""
    fingerprint = examples_fingerprint(options, part, bounds)
    with IndexPart.open(options.data.index(part)) as index:
        rows = index.num_rows
    start, number = 0, 0
    writer: PartExamples | None = None
    while number == 0 or start < rows:
        name = examples_name(part, number)
        path = staging.path(name)
        entry = _known(staging, name, fingerprint, path, is_held)
        if writer is not None or entry is None or entry.first != start:
            writer = writer or PartExamples(options, part, start, rows, bounds)
            stop = writer.write(path, fingerprint)
            entry = measured(path, name, part, (start, stop))
            staging.note(entry)
        start, number = entry.stop, number + 1
        yield entry, path


def made_preview(options: Options, rows: int, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """The preview's one file."""
    fingerprint, path = preview_fingerprint(options, rows), staging.path(PREVIEW_FILE)
    entry = _known(staging, PREVIEW_FILE, fingerprint, path, is_held)
    if entry is None:
        write_preview(path, options, rows, fingerprint)
        entry = measured(path, PREVIEW_FILE, -1, (0, 0))
        staging.note(entry)
    yield entry, path


def _known(staging: Staging, name: str, made_from: Fingerprint, path: Path, is_held: IsHeld) -> Entry | None:
    """The file of this name, if it was made from the same and is still there: here or at the target."""
    entry = staging.known(name)
    if entry is None or entry.fingerprint != made_from:
        return None
    is_here = path.exists() and path.stat().st_size == entry.size
    return entry if is_here or is_held(entry) else None
