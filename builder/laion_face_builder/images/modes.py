"""One colour mode for all pictures: as one sees them, which is not always what Pillow's `convert` makes.

`convert` clips 16-bit grey at 255, so that nearly all of it is white; it shows what lies hidden behind transparent
pixels; and it knows no way from LAB to grey. Here

- transparency goes over white, as img2dataset and browsers with a white page have it;
- of 16 bits the high byte is taken, as Pillow takes it of 16-bit colours and OpenCV of all;
- I and F, which say no range, are scaled from the least of 1 (F alone), 255, 65,535 and 2^31 - 1 that holds all values;
- LAB goes by way of sRGB.

CMYK and YCCK need nothing: Pillow's JPEG reader undoes Adobe's inversion.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.apart import APART, is_decoded_apart
from laion_face_builder.images.strict_pillow import STRICT

#: What `mode=` may be: three channels, or one.
MODES = ("RGB", "L")
#: Where `convert` gives what one sees, if nothing is transparent.
_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_JPEG = b"\xff\xd8"


def in_mode(data: bytes, mode: str) -> bytes:
    """The same picture in bytes of which `datasets.Image(mode=mode)` and Pillow's `convert(mode)` make what one sees.

    Most are given back as they are, and cost a look at their header. The others are written anew, as PNG.

    Args:
        data: a picture that `pictures.neutral` gave.
        mode: one of `MODES`.

    Raises:
        PictureError: "undecodable", it cannot be opened, or there is no way to this mode.
    """
    if data.startswith(_JPEG):
        return data
    return APART.rewritten("in_mode", data, mode=mode) if is_decoded_apart(data) else in_mode_here(data, mode)


def in_mode_here(data: bytes, mode: str) -> bytes:
    """Do the work of `in_mode`, in this process."""
    with STRICT:
        image = pictures.opened(data)
        if _is_plain(image):
            return data
        try:
            image.load()
            out = BytesIO()
            to_mode(image, mode).save(out, "PNG", compress_level=1)
        except Exception as error:  # Pillow's decoders raise whatever their parsers trip over
            raise PictureError("undecodable", f"{image.mode} to {mode}: {error}") from error
        return out.getvalue()


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture as one sees it, in one of `MODES`, without metadata."""
    seen = image.convert(mode) if _is_plain(image) else _to_rgb(image).convert(mode)
    seen.info = {}
    return seen


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as one sees it, in RGB."""
    return to_mode(image, "RGB")


def _is_plain(image: Image.Image) -> bool:
    return image.mode in _PLAIN and "transparency" not in image.info


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "LAB":
        return image.convert("RGB")
    clear = _with_alpha(image)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """uint8[height, width] of a picture with more than eight bits."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
        return np.where(values == image.info.get("transparency", -1), np.uint8(255), grey)
    numbers = np.nan_to_num(values.astype(np.float64))
    return np.round(numbers.clip(0) / _highest(image, numbers) * 255).clip(0, 255).astype(np.uint8)


def _highest(image: Image.Image, numbers: np.ndarray) -> float:
    """The value that is white."""
    if image.format == "PNG":
        return 65535.0  # older Pillows read its 16 bits as I
    steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((step for step in steps if numbers.max(initial=0) <= step), 2.0**31 - 1)


def _with_alpha(image: Image.Image) -> Image.Image:
    # Pillow knows no way from premultiplied grey to colours but by way of plain grey.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
