"""Turn the pictures that transforms take, NumPy arrays or Pillow's of any mode, into pixels and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image

from laion_face_builder.errors import TransformError
from laion_face_builder.images.modes import to_rgb

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: A Pillow picture, or uint8[height, width, 3] (RGB, or any order) or uint8[height, width] (grey).
Picture = TypeVar("Picture", Image.Image, Pixels)

#: These go through a transform as they are; pictures of other modes come back as RGB.
_KEPT_MODES = ("L", "RGB")


def opened(picture: Picture) -> tuple[Pixels, Callable[[Pixels], Picture]]:
    """Return the picture's pixels, uint8[height, width(, 3)], and a function that makes its kind of such pixels.

    Raises:
        TransformError: it is no picture of that sort, or it is empty.
    """
    if isinstance(picture, Image.Image):
        kept = picture if picture.mode in _KEPT_MODES else to_rgb(picture)
        return _checked(np.asarray(kept)), cast("Callable[[Pixels], Picture]", Image.fromarray)
    return _checked(picture), cast("Callable[[Pixels], Picture]", _itself)


def _itself(pixels: Pixels) -> Pixels:
    return pixels


def _checked(pixels: Any) -> Pixels:
    shape = getattr(pixels, "shape", None)
    right = isinstance(pixels, np.ndarray) and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
    if not right or pixels.dtype != np.uint8 or 0 in pixels.shape:
        found = f"{getattr(pixels, 'dtype', type(pixels).__name__)}{list(shape) if shape is not None else ''}"
        raise TransformError(
            f"picture: found {found}, expected a PIL picture, uint8[height, width, 3] or uint8[height, width]"
        )
    return cast("Pixels", pixels)
