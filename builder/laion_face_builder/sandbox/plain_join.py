"""A plain, slow reference join: which metadata rows are the index of a part, and what proves it.

It shares no code with the product, so that one can be held against the other. An id's rows are judged by its faces: a
face fits a picture if the centre of its box lies in it, as it is or with width and height exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from laion_face_builder.sandbox.spec import Face, Row

Faces = Sequence[Face]


def plain_join(rows: Iterable[Row], asked: Set[int], faces: Mapping[int, Faces]) -> tuple[list[Row], dict[str, int]]:
    """Join one part.

    Args:
        rows: of all metadata files, in the order of the files and of the rows in them.
        asked: the ids of the part.
        faces: by id; an id that is not there has none.

    Returns:
        The rows of the index in order, swapped sizes put right; and the proof, in which `asked` and `found` count ids,
        `merged` the rows of found ids that repeat an earlier one's url and caption, `ambiguous` the ids that keep no
        row, `swapped` the kept rows whose sizes were exchanged, `faces_with_sizes` the faces of kept rows whose width
        and height are both known, and `faces_that_fit` how many of those lie in their picture, each row taken the way
        up under which more of them do.
    """
    asked_rows = [dict(row) for row in rows if row["sample_id"] in asked]
    different: dict[int, list[Row]] = {}
    merged = 0
    for row in asked_rows:
        earlier = different.setdefault(row["sample_id"], [])
        repeats = any((row["url"], row["caption"]) == (one["url"], one["caption"]) for one in earlier)
        merged += repeats
        earlier += [] if repeats else [row]
    chosen = {one: _only_one(of_one, faces.get(one, ())) for one, of_one in different.items()}
    kept = [row for row in asked_rows if row is chosen[row["sample_id"]]]
    sized = [row for row in kept if row["width"] is not None and row["height"] is not None]
    proof = {
        "asked": len(asked),
        "found": len(different),
        "merged": merged,
        "ambiguous": sum(row is None for row in chosen.values()),
        "swapped": sum(_is_swapped(row, faces.get(row["sample_id"], ())) for row in kept),
        "faces_with_sizes": sum(len(faces.get(row["sample_id"], ())) for row in sized),
        "faces_that_fit": sum(max(_fitting(row, faces.get(row["sample_id"], ()))) for row in sized),
    }
    return [_put_right(row, faces.get(row["sample_id"], ())) for row in kept], proof


def _only_one(rows: Sequence[Row], faces: Faces) -> Row | None:
    """Return the one row of an id: the only one there is, or the only one that can fit, if it does; else None."""
    if len(rows) == 1:
        return rows[0]
    can_fit = [row for row in rows if _fits(row, faces) in (True, None)]
    return can_fit[0] if len(can_fit) == 1 and _fits(can_fit[0], faces) else None


def _fits(row: Row, faces: Faces) -> bool | None:
    """Say whether all faces fit, either way up; None where the size is not known."""
    if not faces:
        return True
    if row["width"] is None or row["height"] is None:
        return None
    return max(_fitting(row, faces)) == len(faces)


def _fitting(row: Row, faces: Faces) -> tuple[int, int]:
    """Count the faces that fit as the size stands, and those that fit with width and height exchanged."""
    width, height = row["width"], row["height"]
    return sum(face.is_in(width, height) for face in faces), sum(face.is_in(height, width) for face in faces)


def _is_swapped(row: Row, faces: Faces) -> bool:
    if not faces or row["width"] is None or row["height"] is None:
        return False
    as_it_is, exchanged = _fitting(row, faces)
    return as_it_is < len(faces) == exchanged


def _put_right(row: Row, faces: Faces) -> Row:
    return {**row, "width": row["height"], "height": row["width"]} if _is_swapped(row, faces) else row
