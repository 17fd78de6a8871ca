"""Make published files from prepared parts: each is made once, or known from an earlier run and left as it is."""

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
    """Yield the part's one file: the prepared one itself, if it can be published as it is."""
    with IndexPart.open(options.data.index(part)) as index:
        path, known = known_index(options, part, index, staging, is_held)
        if known is None:
            if path != options.data.index(part):
                write_published(path, index, options.filters)
            known = measured(path, index_name(part), part, (0, index.num_rows))
            staging.note(known)
    yield known, path


def known_index(
    options: Options, part: int, index: IndexPart, staging: Staging, is_held: IsHeld
) -> tuple[Path, Entry | None]:
    """Say where the part's one file lies or will lie; give its entry too if it is known from an earlier run."""
    source, name = options.data.index(part), index_name(part)
    as_it_is = is_publishable(source, options.filters)
    path = source if as_it_is else staging.path(name)
    known = _known(staging, name, published_fingerprint(index, options.filters), path, is_held)
    if known is not None and as_it_is and known.size != path.stat().st_size:
        return path, None
    return path, known


def made_examples(options: Options, part: int, bounds: Bounds, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """Yield the part's files in order. Known ones are not made again; the others start where the last of them stops."""
    fingerprint = examples_fingerprint(options, part, bounds)
    with IndexPart.open(options.data.index(part)) as index:
        rows = index.num_rows
    start, number = 0, 0
    for entry in known_examples(part, fingerprint, rows, staging, is_held):
        start, number = entry.stop, number + 1
        yield entry, staging.path(entry.name)
    writer: PartExamples | None = None
    while number == 0 or start < rows:
        writer = writer or PartExamples(options, part, start, rows, bounds)
        name = examples_name(part, number)
        path = staging.path(name)
        stop = writer.write(path, fingerprint)
        entry = measured(path, name, part, (start, stop))
        staging.note(entry)
        start, number = stop, number + 1
        yield entry, path


def known_examples(
    part: int, fingerprint: Fingerprint, rows: int, staging: Staging, is_held: IsHeld
) -> Iterator[Entry]:
    """Yield the part's first files, as far as they are known from an earlier run and follow one another."""
    start, number = 0, 0
    while number == 0 or start < rows:
        name = examples_name(part, number)
        entry = _known(staging, name, fingerprint, staging.path(name), is_held)
        if entry is None or entry.first != start:
            return
        yield entry
        start, number = entry.stop, number + 1


def made_preview(options: Options, rows: int, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """Yield the preview's one file."""
    fingerprint, path = preview_fingerprint(options, rows), staging.path(PREVIEW_FILE)
    entry = known_preview(options, rows, staging, is_held)
    if entry is None:
        write_preview(path, options, rows, fingerprint)
        entry = measured(path, PREVIEW_FILE, -1, (0, 0))
        staging.note(entry)
    yield entry, path


def known_preview(options: Options, rows: int, staging: Staging, is_held: IsHeld) -> Entry | None:
    """Give the entry of the preview's file if it is known from an earlier run, else None."""
    fingerprint = preview_fingerprint(options, rows)
    return _known(staging, PREVIEW_FILE, fingerprint, staging.path(PREVIEW_FILE), is_held)


def _known(staging: Staging, name: str, made_from: Fingerprint, path: Path, is_held: IsHeld) -> Entry | None:
    """Give the entry of a file that was made from the same data and is still here or at the target, else None."""
    entry = staging.known(name)
    if entry is None or entry.fingerprint != made_from:
        return None
    is_here = path.exists() and path.stat().st_size == entry.size
    return entry if is_here or is_held(entry) else None
