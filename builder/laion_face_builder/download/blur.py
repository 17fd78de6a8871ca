"""Faces made unrecognisable by img2dataset's own blurring, while downloading and on the way to an example alike.

It blurs each box and a tenth around it with one Gaussian a picture, whose sigma is about 3 % of the largest box (1.47
with albumentations 1.4.24). In a picture of another aspect than the one in which the faces were found it would blur
something else: such pictures have to be left out (`reasons.CANNOT_BLUR`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures, reasons
from laion_face_builder.images.frames import Face, Size

#: As img2dataset's default.
JPEG_QUALITY = 95
#: The column of img2dataset's list with the boxes to blur.
BOXES_COLUMN = "blur_boxes"

Floats = np.ndarray[Any, np.dtype[Any]]
Pixels = np.ndarray[Any, np.dtype[Any]]


def boxes_to_blur(table: pa.Table) -> pa.Array:
    """list<float64[4]>[n]: for each index row its boxes as img2dataset wants them, null if it cannot be blurred.

    Args:
        table: index rows with width, height and faces.
    """
    faces = table["faces"].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(faces), 0).to_numpy()
    boxes = pc.struct_field(pc.list_flatten(faces), "box")
    numbers = pc.list_flatten(boxes).to_numpy(zero_copy_only=False).reshape(-1, 4)
    rows = np.repeat(np.arange(len(counts)), counts)
    sizes = np.stack([pc.fill_null(table[name], 0).to_numpy() for name in ("width", "height")], axis=1)
    shares = _shares(numbers, sizes[rows])
    lost = np.zeros(len(counts), dtype=bool)
    lost[rows[~np.isfinite(shares).all(axis=1)]] = True
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(shares.ravel(), pa.float64()), 4)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lost))


def _shares(boxes: Floats, sizes: Floats) -> Floats:
    """float64[n, 4]: boxes in pixels as shares of width and height, clipped to the picture; NaN where that is nothing.

    Clipped, since a box that reaches far beyond the picture would make the blurring take for ever.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = boxes.astype(np.float64).reshape(-1, 2, 2) / sizes.reshape(-1, 1, 2)
    shares[~(sizes > 0).all(axis=1) | ~np.isfinite(shares).all(axis=(1, 2))] = np.nan
    return np.sort(shares.clip(0, 1), axis=1).reshape(-1, 4)


def blurred(data: bytes, faces: Sequence[Face], size: Size) -> bytes:
    """A JPEG of the picture with its faces blurred, in the frame that `pictures.neutral` gives.

    Args:
        data: a picture that `pictures.inspect` passed.
        faces: in its frame, pixels; none at all give `neutral(data)`.
        size: its width and height.

    Raises:
        PictureError: "cannot_blur": a box is not a number, or OpenCV does not see the same picture.
    """
    if not faces:
        return pictures.neutral(data)
    import cv2

    shares = _shares(np.array([face["box"] for face in faces]), np.tile(size, (len(faces), 1)))
    pixels = _decoded(data)
    if not np.isfinite(shares).all() or pixels.shape[1::-1] != size:
        raise PictureError(reasons.CANNOT_BLUR, f"boxes {shares.tolist()} in {pixels.shape[1::-1]}, expected {size}")
    with _untouched_random():
        changed = _blurrer()(pixels, shares.tolist())
    written = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return bytes(written.tobytes())


def _decoded(data: bytes) -> Pixels:
    """uint8[height, width] or [height, width, 3] as img2dataset's resizer sees it: no EXIF turn, white behind alpha.

    Unlike there, 16 bits are brought down to 8, not cut off at 255.
    """
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is not None and pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    if pixels is None or pixels.dtype != np.uint8:
        raise PictureError(reasons.CANNOT_BLUR, "OpenCV cannot decode it" if pixels is None else str(pixels.dtype))
    if pixels.ndim == 3 and pixels.shape[-1] == 4:
        alpha = pixels[:, :, 3, np.newaxis]
        matted = alpha / 255 * pixels[..., :3] + 255 - alpha
        pixels = np.rint(matted.clip(0, 255)).astype(np.uint8)
    return np.asarray(pixels)


@cache
def _blurrer() -> Any:
    # Else albumentations asks the network for a newer version of itself when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.blurrer import BoundingBoxBlurrer

    return BoundingBoxBlurrer()


@contextmanager
def _untouched_random() -> Iterator[None]:
    """The blurrer seeds Python's and NumPy's global generators with 42: a training would shuffle alike ever after."""
    ours, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
