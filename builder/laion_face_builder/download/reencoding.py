"""Decide what is kept of a fetched picture: its own bytes, or what img2dataset's resizer makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from laion_face_builder.download.blur import BOXES_COLUMN, ENCODER, MOST_PIXELS
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.errors import PictureError
from laion_face_builder.images.geometry import Size, rescaled
from laion_face_builder.images.pictures import Picture
from laion_face_builder.images.reasons import Reason
from laion_face_builder.images.structure import check_pixels

#: What Pillow calls the formats that img2dataset encodes in.
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True)
class Stored:
    """A picture as it goes into a tar.

    Attributes:
        data: the bytes.
        format: Pillow's name of it.
        size: width and height, pixels.
        orientation: see `pictures.Picture`.
        sha256: of `data`, in hex.
        fetched: width and height of what the host gave.
        fetched_sha256: of the bytes that the host gave, in hex.
    """

    data: bytes
    format: str
    size: Size
    orientation: int
    sha256: str
    fetched: Size
    fetched_sha256: str


def stored(picture: Picture, values: Mapping[str, Any], options: DownloadOptions) -> Stored:
    """Return what is kept of a picture that decodes.

    Args:
        picture: as it was fetched.
        values: its row of `plan.listed`.
        options: say whether it is resized or blurred.

    Raises:
        PictureError: "cannot_blur": it has another aspect than its boxes; "too_many_pixels"; or the resizer's reason.
    """
    size, sha256 = (picture.width, picture.height), hashlib.sha256(picture.data).hexdigest()
    if not options.encodes_again:
        return Stored(picture.data, picture.format, size, picture.orientation, sha256, size, sha256)
    boxes = values.get(BOXES_COLUMN)
    original = (values["laion_width"] or 0, values["laion_height"] or 0)
    if boxes and rescaled(original, size) is None:
        raise PictureError(Reason.CANNOT_BLUR, f"boxes do not fit the fetched {size}")
    # The resizer checks the size only after OpenCV has decoded the picture.
    check_pixels(size, _most_pixels(options))
    made, data = ENCODER.call(
        "resized",
        picture.data,
        resizer={
            "image_size": options.resizing.size,
            "resize_mode": options.resizing.mode,
            "resize_only_if_bigger": options.resizing.only_if_bigger,
            "encode_format": options.encode_format,
            "encode_quality": options.quality,
        },
        blur=options.blur_faces,
        boxes=boxes,
        max_pixels=_most_pixels(options),
    )
    (width, height), fetched, new = made["size"], tuple(made["fetched"]), hashlib.sha256(data).hexdigest()
    return Stored(data, _FORMATS[options.encode_format], (width, height), 1, new, fetched, sha256)


def _most_pixels(options: DownloadOptions) -> int:
    most = options.fetch.max_pixels
    return most if options.resizing else min(most, MOST_PIXELS)
