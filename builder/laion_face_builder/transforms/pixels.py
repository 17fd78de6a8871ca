"""The pictures that transforms take, and giving the same kind back: NumPy arrays, or Pillow's pictures of any mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image

from laion_face_builder.errors import TransformError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
#: A Pillow picture, or uint8[height, width, 3] (RGB, or any order) or uint8[height, width] (grey).
Picture = TypeVar("Picture", Image.Image, Pixels)

#: These go through a transform as they are; pictures of other modes come back as RGB.
_KEPT_MODES = ("L", "RGB")


def opened(picture: Picture) -> tuple[Pixels, Callable[[Pixels], Picture]]:
    """The picture's pixels, uint8[height, width] or uint8[height, width, 3], and what makes its kind of such pixels.

    Raises:
        TransformError: it is no picture of that sort, or it is empty.
    """
    if isinstance(picture, Image.Image):
        kept = picture if picture.mode in _KEPT_MODES else to_rgb(picture)
        return _checked(np.asarray(kept)), cast("Callable[[Pixels], Picture]", Image.fromarray)
    return _checked(picture), cast("Callable[[Pixels], Picture]", _itself)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture as one sees it: 16 bits and floats brought down to 8, transparency over white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        highest = (
            1.0 if picture.mode == "F" and values.max(initial=0) <= 1 else 65535.0 if values.max() > 255 else 255.0
        )
        return Image.fromarray((values / highest * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), clear).convert("RGB")
    return picture.convert("RGB")


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
