"""One colour mode for all pictures, as a viewer would show them, which is not always what Pillow's `convert` makes.

`convert` clips 16-bit grey at 255, so that nearly all of it is white; it shows what lies hidden behind transparent
pixels; and it knows no way from LAB to grey. Here

- transparency goes over white, as img2dataset and browsers with a white page have it;
- of 16 bits the high byte is taken, as Pillow takes it of 16-bit colours and OpenCV of all;
- I and F, which say no range, are scaled from the least of 1 (F alone), 255, 65,535 and 2^31 - 1 that holds all values;
- LAB goes by way of sRGB.

CMYK and YCCK need nothing: Pillow's JPEG reader undoes Adobe's inversion.

It is done in bands of rows: whatever the picture, this takes no more memory than it and what it becomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.images import pictures
from laion_face_builder.images.apart import APART
from laion_face_builder.images.reasons import Reason
from laion_face_builder.images.strict_pillow import STRICT

#: What `mode=` may be: three channels, or one.
MODES = ("RGB", "L")
#: Where `convert` gives what one sees, if nothing is transparent.
_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_JPEG = b"\xff\xd8"
#: Pixels of a band: some of what is made of each takes 70 bytes.
_BAND = 1 << 18
#: Where a PNG says how many bits each of its channels has.
_PNG_DEPTH = 24


def in_mode(data: bytes, mode: str) -> bytes:
    """Return the picture in bytes of which `datasets.Image(mode=mode)` and `convert(mode)` make what a viewer shows.

    Most pictures are given back as they are. The others are written anew, as PNG.

    Args:
        data: a picture that `pictures.neutral` gave.
        mode: one of `MODES`.

    Raises:
        PictureError: "undecodable", it cannot be opened, or there is no way to this mode.
    """
    if data.startswith(_JPEG):
        return data
    return APART.rewritten("in_mode", data, mode=mode)


def in_mode_here(data: bytes, mode: str) -> bytes:
    """Do the work of `in_mode`, in this process."""
    with STRICT:
        image = pictures.opened(data)
        return data if _is_plain(image) else _written(image, mode)


def simple(data: bytes) -> bytes:
    """Return the picture in bytes that any decoder reads as we do: JPEG, or opaque PNG or WebP of 8 bits.

    For decoders that nobody bounds (OpenCV knows formats whose memory no header tells), clip 16 bits at 255, or take 70
    bytes a pixel to put a transparent picture on white. Pictures that are simple are given back as they are.

    Args:
        data: a picture that `pictures.inspect` passed; the turn that its metadata asks for may be lost.

    Raises:
        PictureError: as `in_mode`.
    """
    if data.startswith(_JPEG):
        return data
    return APART.rewritten("simple", data)


def simple_here(data: bytes) -> bytes:
    """Do the work of `simple`, in this process."""
    with STRICT:
        image = pictures.opened(data)
        is_deep = image.format == "PNG" and data[_PNG_DEPTH] > 8
        if image.format in ("PNG", "WEBP") and _is_plain(image) and not is_deep:
            return data
        is_grey = _is_numbers(image) or image.mode in ("1", "L")
        return _written(image, "L" if is_grey and "transparency" not in image.info else "RGB")


def _written(image: Image.Image, mode: str) -> bytes:
    """Encode the picture in `mode`, as a viewer shows it, as a PNG."""
    out = BytesIO()
    try:
        image.load()
        to_mode(image, mode).save(out, "PNG", compress_level=1)
    except Exception as error:  # Pillow's decoders raise whatever their parsers trip over
        raise PictureError(Reason.UNDECODABLE, f"{image.mode} to {mode}: {error}") from error
    return out.getvalue()


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert the picture to one of `MODES`, as a viewer shows it, without metadata."""
    seen = image.convert(mode) if _is_plain(image) else _in_bands(image, mode)
    seen.info = {}
    return seen


def _in_bands(image: Image.Image, mode: str) -> Image.Image:
    seen, white = Image.new(mode, image.size), _highest(image)
    for band, top in _bands(image):
        seen.paste(_to_rgb(band, white).convert(mode), (0, top))
    return seen


def _bands(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Yield the picture in bands from top to bottom, with the row where each begins."""
    width, height = image.size
    rows = max(1, _BAND // max(width, 1))
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height))), top


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert the picture to RGB, as a viewer shows it."""
    return to_mode(image, "RGB")


def _is_plain(image: Image.Image) -> bool:
    return image.mode in _PLAIN and "transparency" not in image.info


def _to_rgb(image: Image.Image, white: float) -> Image.Image:
    if _is_numbers(image):
        return Image.fromarray(_eight_bits(image, white)).convert("RGB")
    if image.mode == "LAB":
        return image.convert("RGB")
    clear = _with_alpha(image)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")


def _is_numbers(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _eight_bits(image: Image.Image, white: float) -> np.ndarray:
    """Return uint8[height, width] of a picture with more than eight bits."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
        return np.where(values == image.info.get("transparency", -1), np.uint8(255), grey)
    numbers = np.nan_to_num(values.astype(np.float64))
    return np.round(numbers.clip(0) / white * 255).clip(0, 255).astype(np.uint8)


def _highest(image: Image.Image) -> float:
    """Return the value that is shown as white in a picture with more than eight bits."""
    if image.mode not in ("I", "F") or image.format == "PNG":
        return 65535.0  # older Pillows read a PNG's 16 bits as I
    numbers = (np.nan_to_num(np.asarray(band).astype(np.float64)) for band, _ in _bands(image))
    highest = max(band.max(initial=0) for band in numbers)
    steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((step for step in steps if highest <= step), 2.0**31 - 1)


def _with_alpha(image: Image.Image) -> Image.Image:
    # Pillow knows no way from premultiplied grey to colours but by way of plain grey.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
