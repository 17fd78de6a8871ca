"""Our own bugs in the middle of a fetch: counted as that picture's failure, logged once, never the end of a stream."""

from __future__ import annotations

import logging
import traceback

from laion_face_builder.errors import PictureError
from laion_face_builder.images.reasons import INTERNAL

_LOG = logging.getLogger("laion_face")
#: Where faults were found that have been told of. One place would fill the log.
_TOLD: set[tuple[str, str]] = set()


def counted(error: Exception, url: str) -> PictureError:
    """Return the failure that `error` is counted as; log the first of each kind and place with its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    kind = type(error).__name__
    if (kind, place) not in _TOLD:
        _TOLD.add((kind, place))
        _LOG.error(
            "a fault of laion_face, please report it; such pictures are counted as %r: %s",
            INTERNAL,
            url[:500],
            exc_info=error,
        )
    return PictureError(INTERNAL, f"{kind}: {str(error)[:200]}")
