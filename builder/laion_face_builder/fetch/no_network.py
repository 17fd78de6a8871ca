"""Saying early that it is not the pictures: from the first on, each failed for want of a network."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import TypeVar

from laion_face_builder.errors import PictureError

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger("laion_face")

#: What a picture fails with where there is no network; now and then for reasons of its own.
_SIGNS = frozenset({"dns", "unreachable"})
#: So many in a row, before the first that fails otherwise or arrives. About one address in ten is of a lost host.
FEW = 8


def watched(
    fetched: Iterator[tuple[T, U | PictureError | None]], few: int = FEW
) -> Generator[tuple[T, U | PictureError | None], None, None]:
    """Pass on what was fetched, and warn once if its beginning looks as if there were no network.

    Args:
        fetched: items with their pictures, or why there is none.
        few: so many failures at the beginning make it look so. Where items come as they are done, the quick failures of
            all in flight come first.
    """
    signs = 0
    for item, picture in fetched:
        if picture is not None and 0 <= signs < few:
            signs = signs + 1 if isinstance(picture, PictureError) and picture.reason in _SIGNS else -1
            if signs == few:
                logger.warning(
                    "the network cannot be reached: none of the first %d pictures came (the last: %s). They are "
                    "counted as failed; images='none' does without pictures, images='download' keeps them on disk",
                    signs,
                    picture,
                )
        yield item, picture
