"""A local index part made from a published one, whoever wrote that last."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from laion_face_builder.files import Fingerprint, digest, make_fingerprint, stamped, written_whole
from laion_face_builder.index.published import find_published
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.writer import open_writer
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.schema import INDEX


def copy_index(target: Path, place: str, part: int, token: str | None = None) -> int:
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
