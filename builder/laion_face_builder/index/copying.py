"""A local index part made from a published one, whoever wrote that last."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from laion_face_builder.errors import StateConflict
from laion_face_builder.files import (
    Fingerprint,
    digest,
    locked,
    make_fingerprint,
    read_fingerprint,
    remove_partials,
    stamped,
    written_whole,
)
from laion_face_builder.index.plan import has_pictures
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.writer import open_writer, proof_path
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.schema import INDEX
from laion_face_builder.shown import shown
from laion_face_builder.upstream.tokens import Token

logger = logging.getLogger("laion_face")


def copy_parts(data: DataDir, parts: Sequence[int], place: str, token: Token = None) -> None:
    """Make the local index of `parts` from a published one, as far as it is not there yet; nothing else is needed.

    Args:
        place: as for `published.find_published`.

    Raises:
        SourceError: a part is not there, or cannot be had; BadFile: it is no index.
        StateConflict: pictures were downloaded for another index.
    """
    with tqdm(total=len(parts), unit="part", desc="prepare", disable=None, file=sys.stderr) as bar:
        for part in parts:
            with locked(data.index(part)):
                _copy_part(data, part, place, token)
            bar.update()


def _copy_part(data: DataDir, part: int, place: str, token: Token) -> None:
    target = data.index(part)
    with IndexPart.open(find_published(place, part, token), token) as source:
        fingerprint = copied_fingerprint(source, part)
    ours = read_fingerprint(target)
    if ours == fingerprint:
        return
    if ours is not None and has_pictures(data, part):
        raise StateConflict(
            f"{target}: pictures were downloaded for it, and it is not the part that {shown(place)} has. Name the "
            f"sources that it was made from, or move {data.tars(part)} and {data.sidecar(part).name} away to start "
            "this part anew."
        )
    remove_partials(target.parent, target.name)
    proof_path(target).unlink(missing_ok=True)  # It speaks of the index that is replaced.
    rows = copy_index(target, place, part, token)
    logger.info("part %d: %d rows from %s", part, rows, shown(place))


def copy_index(target: Path, place: str, part: int, token: Token = None) -> int:
    """Writes the part of the published index at `place` to `target`; gives its number of rows.

    A part that laion-face wrote is the same index there, with the same fingerprint. In memory is a row group.

    Args:
        place: as for `published.find_published`.

    Raises:
        SourceError: the part is not there, or cannot be had; BadFile: it is no index.
    """
    with IndexPart.open(find_published(place, part, token), token) as source:
        rows = source.num_rows
        schema = stamped(INDEX, copied_fingerprint(source, part))
        with (
            written_whole(target) as partial,
            open_writer(partial, schema) as out,
            tqdm(total=rows, unit="row", desc=f"part {part}: index", leave=False, disable=None, file=sys.stderr) as bar,
        ):
            for start, stop in row_group_bounds(rows):
                table = source.read(start, stop).combine_chunks()
                out.write_table(table.cast(schema), row_group_size=stop - start)
                bar.update(stop - start)
    return rows


def copied_fingerprint(source: IndexPart, part: int) -> Fingerprint:
    """What a copy of the part carries: its own fingerprint, or which content it is a copy of."""
    own = source.fingerprint
    return own if own.get("kind") == "index" else make_fingerprint("index", part=part, copy=digest(own, 64))
