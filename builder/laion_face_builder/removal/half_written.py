"""Remove what killed writers left in a DATA_DIR: files that are not whole, and that nobody reads, may have any row.

Rows of a part that never came to an index are known by their addresses there alone, so that no list can find them. Only
whoever holds the lock of a file may take it for left: what is being written now is waited for.
"""

from __future__ import annotations

from laion_face_builder.files import locked, remove_partials
from laion_face_builder.layout import ALL_PARTS, DataDir


def remove_half_written(data: DataDir) -> None:
    """Remove half-written ids, faces, indexes and proofs; the caller holds the lock on `staging`, and no other.

    Those of pictures, joined tables and copies of upstream's files go with the rows that are taken out of these.
    """
    if data.ids(0).parent.exists():
        with locked(data.ids(0).with_name("id-list")):
            remove_partials(data.ids(0).parent)
    for part in ALL_PARTS:
        tables = (data.faces(part), data.index(part))
        if any(any(path.parent.glob(f".{path.stem}.*.partial")) for path in tables):
            with locked(data.index(part)):
                for path in tables:
                    remove_partials(path.parent, f"{path.stem}.")
