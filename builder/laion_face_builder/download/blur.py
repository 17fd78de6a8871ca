"""Blur faces with img2dataset's own blurring, while downloading and on the way to an example alike.

It blurs each box and a tenth around it, with one Gaussian for the whole picture that goes by the largest box. The
method that it follows takes a tenth of that box for sigma; img2dataset 1.47 with albumentations 1.4.24 comes to 3 %,
and eyes and mouth can still be seen. So one more box goes along, 10/3 as large and upside down: it blurs nothing
itself, and makes sigma what it should be.

In a picture of another aspect than the one in which the faces were found it would blur something else: such pictures
have to be left out (`Reason.CANNOT_BLUR`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.apart import DecoderProcess
from laion_face_builder.images.geometry import Face, Size
from laion_face_builder.images.reasons import Reason
from laion_face_builder.parallel import python

#: The children that resize and blur.
ENCODER = DecoderProcess(python("-m", "laion_face_builder.download.encoding_child"))
#: As img2dataset's default.
JPEG_QUALITY = 95
#: The column of a shard with the boxes to blur, as img2dataset wants them.
BOXES_COLUMN = "blur_boxes"

#: Larger pictures are not blurred: the work grows with their size times that of the largest face, to a minute here.
MOST_PIXELS = 8_000_000
#: Shares of the largest box: what sigma is to be, and what img2dataset makes of it.
_SIGMA, _IMG2DATASETS_SIGMA = 0.1, 0.03
#: Pixels; bounds the Gaussian to about a thousand.
_MOST_REACH = 5000.0
#: Picture heights: where the upside-down box begins and ends, so that there is nothing between.
_FAR = 1000.0

Floats = np.ndarray[Any, np.dtype[Any]]


def boxes_to_blur(table: pa.Table) -> pa.Array:
    """Return each index row's boxes as img2dataset wants them, list<list<float64>[4]>[n]; null if it cannot be blurred.

    Args:
        table: index rows with width, height and faces.
    """
    faces = table["faces"].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(faces), 0).to_numpy()
    numbers = pc.list_flatten(pc.struct_field(pc.list_flatten(faces), "box")).to_numpy(zero_copy_only=False)
    sizes = np.stack([pc.fill_null(table[name], 0).to_numpy() for name in ("width", "height")], axis=1)
    ends = np.cumsum(counts)
    apart = np.split(numbers.reshape(-1, 4), ends[:-1])[: len(ends)]  # of no rows it gives one piece
    boxes = [_shares(of_row, size) for of_row, size in zip(apart, sizes, strict=True)]
    return pa.array([None if found is None else found.tolist() for found in boxes], pa.list_(pa.list_(pa.float64(), 4)))


def _shares(boxes: Floats, size: Floats | Size) -> Floats | None:
    """Return boxes in pixels, float[n, 4], as shares of width and height, with the upside-down box that sets sigma.

    None if the size is unknown or a box is not finite. Boxes are clipped to the picture: the blurring of one that
    reaches far beyond it would take for ever.
    """
    width, height = (float(side) for side in size)
    if not len(boxes):
        return boxes
    if min(width, height) <= 0 or not np.isfinite(boxes).all():
        return None
    corners = (boxes.astype(np.float64).reshape(-1, 2, 2) / (width, height)).clip(0, 1)
    shares = np.sort(corners, axis=1).reshape(-1, 4)
    largest = ((shares[:, 2:] - shares[:, :2]) * (width, height)).max()
    reach = min(largest / _IMG2DATASETS_SIGMA * _SIGMA, _MOST_REACH)
    return np.concatenate([shares, [[0.0, _FAR, reach / width, -_FAR]]])


def blurred(data: bytes, faces: Sequence[Face], within: Size, size: Size) -> bytes:
    """Return a JPEG of the picture with its faces blurred, in the frame that `pictures.neutral` gives.

    Args:
        data: a picture that `pictures.inspect` passed.
        faces: without any the result is `neutral(data)`.
        within: width and height of the frame that the boxes are in, pixels; the picture may be a scaled copy of it.
        size: width and height of the picture.

    Raises:
        PictureError: "cannot_blur": a box is not a number, the picture is too large, or OpenCV sees another size; or as
            `modes.simple`.
    """
    if not faces:
        return pictures.neutral(data)
    shares = _shares(np.array([face["box"] for face in faces]), within)
    if shares is None or size[0] * size[1] > MOST_PIXELS:
        raise PictureError(Reason.CANNOT_BLUR, f"{size[0]} x {size[1]}, {len(faces)} boxes")
    return ENCODER.call("blurred", data, shares=shares.tolist(), size=size, quality=JPEG_QUALITY)[1]
