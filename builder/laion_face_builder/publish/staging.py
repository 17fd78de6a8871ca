"""Make published files once, and keep them until they are sent: a publish that was killed goes on where it was.

DATA_DIR/publish/NAME/            NAME stands for the target; all of it is gone after the last step
  laion_face_manifest.json        what has been made so far: the ledger, in the manifest's own form
  data/part-000NN-000KK.parquet   made and not yet sent; freed once it is

A file that is known from an earlier run is left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from laion_face_builder.examples import parts
from laion_face_builder.files import Fingerprint, digest, locked, remove_partials, written_whole
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.removals import settled
from laion_face_builder.layout import DataDir
from laion_face_builder.options import Options
from laion_face_builder.publish.manifest import MANIFEST, PREVIEW_FILE, Entry, Kind, Manifest, examples_name, index_name
from laion_face_builder.publish.published_files import (
    Bounds,
    PartExamples,
    examples_fingerprint,
    is_publishable,
    measured,
    preview_fingerprint,
    published_fingerprint,
    write_preview,
    write_published,
)
from laion_face_builder.publish.withdrawn import PublishedRows, is_made_from


class Staging:
    """The staging folder of one publish.

    Args:
        known: what is published already: not made again if it was made from the same data.
    """

    def __init__(self, root: Path, kind: Kind, known: Manifest | None) -> None:
        self.root, self._kind = root, kind
        self._made = dict(self._read().entries)
        self._known = {**(known.entries if known is not None else {}), **self._made}

    @classmethod
    @contextmanager
    def at(cls, data: DataDir, target: str, kind: Kind, known: Manifest | None) -> Iterator[Staging]:
        """Open the folder for `target`, locked against other processes until the block ends."""
        root = _folder(data, target, kind)
        with locked(root, waiting=f"waiting for another publish to {target}"):
            for folder in (root, root / "data", root / "more", root / "preview"):
                remove_partials(folder)
            yield cls(root, kind, known)

    @classmethod
    def seen(cls, data: DataDir, target: str, kind: Kind, known: Manifest | None) -> Staging:
        """Give the folder for `target` as it is now, only to be read."""
        return cls(_folder(data, target, kind), kind, known)

    def path(self, name: str) -> Path:
        """Give the path where a file is made."""
        return self.root / name

    def known(self, name: str) -> Entry | None:
        """Give the entry of what was made under this name, now or in an earlier publish; None if nothing was."""
        return self._known.get(name)

    def note(self, entry: Entry) -> None:
        """Note in the ledger that a file is whole."""
        self._made[entry.name] = self._known[entry.name] = entry
        with written_whole(self.root / MANIFEST) as partial:
            partial.write_text(Manifest(self._kind, self._made).as_text(), encoding="utf-8")

    def free(self, name: str) -> None:
        """Delete a file that has been sent."""
        self.path(name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Delete the folder: from now on the published manifest tells what there is."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _read(self) -> Manifest:
        ledger = self.root / MANIFEST
        return Manifest.from_text(ledger.read_bytes(), str(self.root)) if ledger.exists() else Manifest(self._kind)


def _folder(data: DataDir, target: str, kind: Kind) -> Path:
    return data.root / "publish" / f"{kind}-{digest(target)}"


#: Whether the target holds the file that an entry speaks of.
IsHeld = Callable[[Entry], bool]
#: A file, and where its bytes lie here; nothing lies there if the target holds it.
Made = tuple[Entry, Path]


def made_index(options: Options, part: int, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """Yield the part's one file: the prepared one itself, if it can be published as it is."""
    with parts.index_of(options, part) as index:
        path, known = known_index(options, part, index, staging, is_held)
        if known is None:
            if path != options.data.index(part):
                write_published(path, index, options, part)
            known = measured(path, index_name(part), part, (0, index.num_rows))
            staging.note(known)
    yield known, path


def known_index(
    options: Options, part: int, index: IndexPart, staging: Staging, is_held: IsHeld
) -> tuple[Path, Entry | None]:
    """Say where the part's one file lies or will lie; give its entry too if it is known from an earlier run."""
    source, name = options.data.index(part), index_name(part)
    as_it_is = is_publishable(source, options)
    path = source if as_it_is else staging.path(name)
    known = _known(staging, name, published_fingerprint(index, options, part), path, is_held)
    if known is not None and as_it_is and known.size != path.stat().st_size:
        return path, None
    # Rows that are left out, and then leave the index, leave the file as it is.
    return path, None if known is None else replace(known, stop=index.num_rows)


def made_examples(options: Options, part: int, bounds: Bounds, staging: Staging, is_held: IsHeld) -> Iterator[Made]:
    """Yield the part's files in order. Known ones are not made again; the others start where the last of them stops."""
    fingerprint = examples_fingerprint(options, part, bounds)
    with parts.index_of(options, part) as index:
        rows = index.num_rows
    start, number = 0, 0
    for entry in known_examples(options, part, bounds, staging, is_held):
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


def known_examples(options: Options, part: int, bounds: Bounds, staging: Staging, is_held: IsHeld) -> Iterator[Entry]:
    """Yield the part's first files, as far as they are known from an earlier run and follow one another.

    Where rows have left the part, those of its files that had none of them are as good as before.
    """
    fingerprint = examples_fingerprint(options, part, bounds)
    with parts.index_of(options, part) as index:
        rows = index.num_rows
    placed = PublishedRows.of(options, part).placed if part in dict(options.stamps) else None
    pictures = settled(options.data).pictures_before(part, str(fingerprint["pictures"]))
    start, number = 0, 0
    while number == 0 or start < rows:
        name = examples_name(part, number)
        entry = staging.known(name)
        is_good = entry is not None and (
            entry.fingerprint == fingerprint if placed is None else is_made_from(entry, fingerprint, pictures)
        )
        entry = _if_there(entry, staging.path(name), is_held) if is_good else None
        if entry is not None and placed is not None:
            entry = placed(entry, start)
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
    return _if_there(entry, path, is_held) if entry is not None and entry.fingerprint == made_from else None


def _if_there(entry: Entry | None, path: Path, is_held: IsHeld) -> Entry | None:
    """Give the entry of a file that is still here or at the target, else None."""
    if entry is None:
        return None
    is_here = path.exists() and path.stat().st_size == entry.size
    return entry if is_here or is_held(entry) else None
