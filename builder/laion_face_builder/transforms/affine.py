"""What a transform gives: the new picture, the matrix from the old frame to the new one, and annotations moved by it.

Frames are OpenCV's: whole numbers are the centres of pixels, (0, 0) is the centre of the first one.

Pictures may be NumPy arrays or Pillow's of any mode; they become pixels, and what they were, again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Generic, TypeVar, cast

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


Floats = np.ndarray[Any, np.dtype[np.float64]]
Face = Mapping[str, Any]
#: The longest side of a transformed picture, pixels.
MOST_PIXELS_A_SIDE = 16_384


@dataclass(frozen=True, eq=False)
class Transformed(Generic[Picture]):
    """A picture that was cropped or aligned.

    Attributes:
        image: of the kind that was given.
        matrix: float64[2, 3]; (x, y) of the old picture lies at matrix @ (x, y, 1) of the new one.
        landmarks: float64[5, 2] in the new picture, which may be outside of it.
        face: box, landmarks and score in the new picture, as plain numbers; None where only landmarks were given.
    """

    image: Picture
    matrix: Floats
    landmarks: Floats
    face: dict[str, Any] | None = None

    def points(self, points: Any) -> Floats:
        """Move points (x, y) of the old picture, [..., 2], into the new one, float64[..., 2]."""
        return moved_points(points, self.matrix)

    def moved(self, face: Face) -> dict[str, Any]:
        """Move any face of the old picture (box, landmarks, score) into the new one; see `moved_face`."""
        return moved_face(face, self.matrix)


def moved_points(points: Any, matrix: Floats) -> Floats:
    """Move `points` [..., 2] by `matrix` [2, 3]."""
    given = np.asarray(points, np.float64)
    return np.asarray(given @ matrix[:, :2].T + matrix[:, 2], np.float64)


def moved_face(face: Face, matrix: Floats) -> dict[str, Any]:
    """Move a face by `matrix`, as plain numbers, rounded to float32 as all faces are.

    Where the matrix turns, the box is the upright one around the turned box, and so larger.
    """
    x1, y1, x2, y2 = (float(edge) for edge in face["box"])
    corners = moved_points([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], matrix)
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    landmarks = moved_points(face["landmarks"], matrix)
    plain: list[float] = box.astype(np.float32).tolist()
    return {**face, "box": plain, "landmarks": landmarks.astype(np.float32).tolist()}


def checked_landmarks(landmarks: Any) -> Floats:
    """Return the five landmarks as float64[5, 2].

    Raises:
        TransformError: these are not five finite points.
    """
    try:
        points = np.asarray(landmarks, np.float64)
    except (TypeError, ValueError) as error:
        raise TransformError(f"landmarks: expected five points (x, y), found {landmarks!r}") from error
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise TransformError(f"landmarks: expected five finite points (x, y), found {points.tolist()}")
    return points


def checked_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the box as x1, y1, x2, y2.

    Raises:
        TransformError: these are not four finite numbers, or the box has no area.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box) if len(box) == 4 else (0.0, 0.0, 0.0, 0.0)
    if not np.isfinite((x1, y1, x2, y2)).all() or x2 <= x1 or y2 <= y1:
        raise TransformError(f"box: expected finite x1 < x2 and y1 < y2, found {list(box)}")
    return x1, y1, x2, y2


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return width and height; one number means a square.

    Raises:
        TransformError: not whole numbers from 1 to `MOST_PIXELS_A_SIDE`.
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, Integral) and 1 <= s <= MOST_PIXELS_A_SIDE for s in sides):
        raise TransformError(f"size: expected pixels, or (width, height), up to {MOST_PIXELS_A_SIDE}; found {size!r}")
    return int(sides[0]), int(sides[1])
