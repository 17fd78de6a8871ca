"""The child process that resizes and blurs: `python -m laion_face_builder.download.encoding_child`.

It is a decoder's child (`images.apart_child`) that has img2dataset, whose import takes seconds, and OpenCV.
"""

from __future__ import annotations

import io
import os
import sys
import types
from functools import lru_cache
from typing import Any

from laion_face_builder.errors import PictureError
from laion_face_builder.images import apart_child, modes
from laion_face_builder.images.geometry import Size
from laion_face_builder.images.reasons import Reason, short_name

#: Seconds of processor time for every picture: blurring a large face takes a minute.
_SECONDS = 180


def _resized(data: bytes, resizer: dict[str, Any], blur: bool, boxes: Any, max_pixels: int) -> apart_child.Reply:
    made = _resizer(tuple(resizer.items()), blur, max_pixels)
    done = made(io.BytesIO(modes.simple_here(data)), boxes)
    written, width, height, fetched_width, fetched_height, message = done
    if message is not None:
        raise PictureError(short_name(message), message)
    return {"size": (width, height), "fetched": (fetched_width, fetched_height)}, bytes(written)


@lru_cache(maxsize=1)
def _resizer(given: tuple[tuple[str, Any], ...], blur: bool, max_pixels: int) -> Any:
    from img2dataset.blurrer import BoundingBoxBlurrer
    from img2dataset.resizer import Resizer

    return Resizer(**dict(given), max_image_area=max_pixels, blurrer=BoundingBoxBlurrer() if blur else None)


def _blurred(data: bytes, shares: list[list[float]], size: Size, quality: int) -> apart_child.Reply:
    """Blur as img2dataset's resizer does: EXIF's turn is not applied, and what is behind alpha is white."""
    import cv2
    import numpy as np

    pixels = cv2.imdecode(np.frombuffer(modes.simple_here(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise PictureError(Reason.CANNOT_BLUR, "OpenCV cannot decode it")
    if list(pixels.shape[1::-1]) != list(size):
        raise PictureError(Reason.CANNOT_BLUR, f"OpenCV sees {pixels.shape[1::-1]}, expected {tuple(size)}")
    changed = _blurrer()(pixels, shares)
    return {}, bytes(cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


@lru_cache(maxsize=1)
def _blurrer() -> Any:
    from img2dataset.blurrer import BoundingBoxBlurrer

    return BoundingBoxBlurrer()


def _leave_out_what_is_not_used() -> None:
    """Have img2dataset import no torch (6 s, 0.2 GB), and no wandb, which makes folders that a kill leaves behind.

    Nor is the network asked for a newer version of albumentations.
    """
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", DO_NOT_TRACK="1")
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    sys.modules["wandb"] = types.ModuleType("wandb")


if __name__ == "__main__":
    _leave_out_what_is_not_used()
    import img2dataset  # noqa: F401 - before memory is bounded

    apart_child.main({"resized": _resized, "blurred": _blurred}, _SECONDS)
